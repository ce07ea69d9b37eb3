#!/bin/sh
# Back up the PostgreSQL database of the platform: a snapshot in an encrypted repository, and
# beside it postgres_backup_YYYYMMDD_HHMMSS.sql.gz with its checksum and signed manifest, which
# need nothing but sha256sum, gunzip and psql. Strongroom does it; this only says what and where.
root=$(cd -- "$(dirname -- "$0")/.." && pwd -P) || exit
# shellcheck source=scripts/common.sh
. "$root/scripts/common.sh"

usage() {
    cat <<'END'
backup_postgres.sh --manual | --daily | --monthly

  --daily, --monthly   from cron; every variable below must be there
  --manual             by hand; without DB_HOST, DB_USER and DB_NAME it works on an embedded
                       PostgreSQL with made-up data, and writes below /tmp/stakazo_backups

  DB_HOST DB_USER DB_NAME   the database          PGPASSWORD   its password, else ~/.pgpass
  BACKUP_DIR                where backups go      DB_PORT      5432 without it

  STRONGROOM_REPOSITORY     the repository; otherwise BACKUP_DIR/repository
  STRONGROOM_PASSPHRASE, STRONGROOM_KEY_FILE, KMS_KEY_ID   what opens it; otherwise a key file is
                            made in STRONGROOM_KEYS (~/.local/share/strongroom/stakazo)
  STRONGROOM_ROLE_PASSWORDS=yes   take the password hashes of roles too (needs a superuser)
  STRONGROOM_BIN            the program, when it is not on the PATH

Exit status: 0 done, 2 usage or configuration, 3 incomplete, 4 refused, 6 busy, 7 unreachable,
8 password or key wrong, 9 verification failed, 130 or 143 interrupted.
END
}

begin "$@"
if [ "$mode" = --manual ] && [ -z "${DB_HOST:-}${DB_USER:-}${DB_NAME:-}${PGPASSWORD:-}" ]; then
    use_development_parts database
    # Once more, beside an embedded server that ends with it; now DB_HOST and the others are set.
    exec "$python" "$platform/embedded.py" --size small -- sh "$root/scripts/$program.sh" --manual
fi
require DB_HOST DB_USER DB_NAME BACKUP_DIR
prepare
{
    write_repository
    printf '[source.postgres_backup]\ntype = "postgres"\nmethod = "logical"\n'
    printf 'dsn = "postgresql:///?host=%s&port=%s&user=%s&dbname=%s"\n' "$(percent "$DB_HOST")" \
        "$(percent "${DB_PORT:-5432}")" "$(percent "$DB_USER")" "$(percent "$DB_NAME")"
    [ -z "${PGPASSWORD:-}" ] || printf 'password = "env:PGPASSWORD"\n'
    [ "${STRONGROOM_ROLE_PASSWORDS:-no}" = yes ] || printf 'role_passwords = false\n'
    printf 'promise = { rpo = "24h", rto = "4h", keep = "30d" }\n'
} >"$STRONGROOM_CONFIG"
back_up postgres_backup
