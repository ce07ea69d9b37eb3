#!/bin/sh
# Back up the Memory Vault: a snapshot in an encrypted repository, and beside it
# memory_vault_YYYYMM.tar.gz.enc with its checksum and signed manifest, which need nothing but
# sha256sum, openssl and tar. Strongroom does it; this only says what and where.
root=$(cd -- "$(dirname -- "$0")/.." && pwd -P) || exit
# shellcheck source=scripts/common.sh
. "$root/scripts/common.sh"

usage() {
    cat <<'END'
backup_memory_vault.sh --manual | --daily | --monthly

  --daily, --monthly   from cron; VAULT_ROOT and BACKUP_DIR must be there
  --manual             by hand; without VAULT_ROOT it takes /tmp/stakazo_memory_vault, filled with
                       made-up files when it is empty, and writes below /tmp/stakazo_backups

  VAULT_ROOT    the vault: a folder, or remote:path as rclone has it (gdrive:/stakazo/memory_vault/)
  BACKUP_DIR    where backups go
  KMS_KEY_ID    a key of AWS KMS: makes and wraps the keys; otherwise key files of mode 0600 are
                made in STRONGROOM_KEYS (~/.local/share/strongroom/stakazo)

  STRONGROOM_REPOSITORY     the repository; otherwise BACKUP_DIR/repository
  STRONGROOM_PASSPHRASE, STRONGROOM_KEY_FILE   what opens it, instead
  STRONGROOM_BIN            the program, when it is not on the PATH

A second run in a month replaces the artefact of that month; the repository keeps both.

Exit status: 0 done, 2 usage or configuration, 3 incomplete, 4 refused, 6 busy, 7 unreachable,
8 password or key wrong, 9 verification failed, 130 or 143 interrupted.
END
}

begin "$@"
if [ "$mode" = --manual ] && [ -z "${VAULT_ROOT:-}" ]; then
    use_development_parts vault
    VAULT_ROOT=$parts/stakazo_memory_vault
    own_folder "$VAULT_ROOT"
    if [ -z "$(find "$VAULT_ROOT" -type f -print | head -n 1)" ]; then
        (unset STAKAZO_VAULT && export VAULT_ROOT &&
            "$python" "$platform/seed.py" --vault --size small) ||
            fail 1 "the vault could not be filled"
    fi
fi
require VAULT_ROOT BACKUP_DIR
prepare
case $VAULT_ROOT in
    /* | ./* | ../* | rclone:*) vault=$VAULT_ROOT ;;
    *:*) vault=rclone:$VAULT_ROOT ;;
    *) vault=$VAULT_ROOT ;;
esac
case $vault in
    /* | rclone:*) ;;
    *) vault=$(pwd -P)/$vault ;;
esac
{
    write_repository
    printf '[source.memory_vault]\ntype = "files"\npath = %s\n' "$(text "$vault")"
    printf 'include = [%s]\n' "$folders"
    printf 'promise = { rpo = "31d", rto = "24h", keep = "12 months" }\n'
} >"$STRONGROOM_CONFIG"
back_up memory_vault --replace-artefact
