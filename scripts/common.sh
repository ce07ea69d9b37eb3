# shellcheck shell=sh disable=SC2034,SC2153,SC2154
# What both scripts share; sourced, never run. POSIX sh.
#
# Rules: a secret is in the environment or in a file of mode 0600, never among the words of a
# command and never in a line of the log; a value is quoted where it is used and encoded where it
# is written; every line of the log begins with its time, so that `>> file 2>&1` makes a log.

set -eu
umask 077
unset CDPATH
folders='"ml_features/", "audits/", "campaign_history/", "clips_metadata/", "orchestrator_runs/"'
program=$(basename -- "$0" .sh)
private=
child=
stopped=0

say() {
    printf '%s %s: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$program" \
        "$(printf %s "$1" | tr '\n\r\033' '???')"
}

# fail STATUS TEXT: what went wrong before Strongroom was started.
fail() {
    say "$2" >&2
    exit "$1"
}

# Which of the flags was given; sets `mode`.
read_flags() {
    mode=
    for word in "$@"; do
        case $word in
            --help | -h)
                usage
                exit 0
                ;;
            --manual | --daily | --monthly)
                [ -z "$mode" ] || fail 2 "$mode and $word do not go together; give one of them"
                mode=$word
                ;;
            *) fail 2 "'$word' is not known; --help tells what is" ;;
        esac
    done
    [ -n "$mode" ] || fail 2 "give --manual, --daily or --monthly; --help tells what they do"
}

# Sets `strongroom`: STRONGROOM_BIN, the one of this checkout, or the one on the PATH.
find_strongroom() {
    strongroom=${STRONGROOM_BIN:-$root/.venv/bin/strongroom}
    [ -n "${STRONGROOM_BIN:-}" ] || [ -x "$strongroom" ] || strongroom=$(command -v strongroom) ||
        fail 2 "strongroom is not installed: pip install strongroom, or set STRONGROOM_BIN"
    [ -x "$strongroom" ] || fail 2 "$strongroom is not a program"
}

# What each of the two begins with: its flags, and the program that does the work.
begin() {
    read_flags "$@"
    find_strongroom
}

# require NAME…: variables without which nothing can be backed up.
require() {
    for name in "$@"; do
        eval "[ -n \"\${$name:-}\" ]" || fail 2 "$name is not set; --help tells what is needed"
    done
}

# Development parts are made below /tmp: a folder there must be ours, whoever made it first.
own_folder() {
    mkdir -p -- "$1" || fail 2 "$1 cannot be made"
    [ -n "$(find "$1" -prune -type d -user "$(id -u)" ! -perm -0002)" ] ||
        fail 4 "$1 belongs to somebody else, or everybody may write to it"
}

# Where nothing is named: everything below /tmp (or STAKAZO_PARTS), on the example platform.
use_development_parts() {
    platform=${STRONGROOM_EXAMPLES:-$root/examples}/stakazo
    [ -f "$platform/seed.py" ] ||
        fail 2 "no $1 is named, and the example platform is not in $platform"
    python=${STRONGROOM_PYTHON:-$(dirname -- "$strongroom")/python}
    [ -x "$python" ] || python=python3
    say "no $1 is named: working on development parts with made-up data"
    parts=${STAKAZO_PARTS:-/tmp}
    own_folder "$parts/stakazo_backups"
    # Made-up data never goes among true backups: a BACKUP_DIR that is set may be that of another.
    BACKUP_DIR=$parts/stakazo_backups/${program#backup_}
    STRONGROOM_KEYS=$parts/stakazo_backups/keys
    export BACKUP_DIR STRONGROOM_KEYS
}

# Make BACKUP_DIR and the folder of the keys, and a private one that is gone at the end.
prepare() {
    mkdir -p -- "$BACKUP_DIR" || fail 2 "BACKUP_DIR $BACKUP_DIR cannot be made"
    backup_dir=$(cd -- "$BACKUP_DIR" && pwd -P) || fail 2 "BACKUP_DIR $BACKUP_DIR cannot be entered"
    [ -w "$backup_dir" ] || fail 2 "BACKUP_DIR $backup_dir cannot be written to"
    keys=${STRONGROOM_KEYS:-${XDG_DATA_HOME:-${HOME:?}/.local/share}/strongroom/stakazo}
    mkdir -p -- "$keys" || fail 2 "the folder of the keys, $keys, cannot be made"
    keys=$(cd -- "$keys" && pwd -P)
    repository=${STRONGROOM_REPOSITORY:-$backup_dir/repository}
    private=$(mktemp -d "${TMPDIR:-/tmp}/stakazo-backup.XXXXXX") || fail 1 'no temporary folder'
    trap 'rm -rf -- "$private"' EXIT
    trap 'stop INT' INT
    trap 'stop TERM' TERM HUP
    STRONGROOM_CONFIG=$private/strongroom.toml
    export STRONGROOM_CONFIG
}

stop() {
    stopped=$1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :
}

# text VALUE: a TOML string.
text() {
    printf '"%s"' "$(printf '%s\n' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g' |
        awk 'NR > 1 { printf "\\n" } { printf "%s", $0 }')"
}

# percent VALUE: every byte that is not surely harmless in a URL, encoded.
percent() {
    case $1 in
        *[!A-Za-z0-9._/-]*) printf %s "$1" | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g' ;;
        *) printf %s "$1" ;;
    esac
}

# The first part of the configuration. Without any key a key file is made on the first day.
write_repository() {
    printf 'timezone = "UTC"\n\n[repository]\nurl = %s\n' "$(text "$repository")"
    if [ -z "${STRONGROOM_PASSPHRASE:-}${STRONGROOM_KEY_FILE:-}${KMS_KEY_ID:-}" ]; then
        key_file=$keys/repository.key
        printf 'key_file = %s\n' "$(text "$key_file")"
    fi
    printf '\n[artefacts]\nkey_dir = %s\n\n' "$(text "$keys/artefacts")"
}

# On the first day: the repository, its keys and the recovery kit.
ensure_repository() {
    case $repository in
        *://*)
            status=0
            "$strongroom" --quiet list </dev/null >"$private/answer" 2>&1 || status=$?
            [ "$status" -eq 5 ] || [ ! -e "${key_file:-/}" ] || return 0
            ;;
        *) [ ! -e "$repository/strongroom.json" ] || return 0 ;;
    esac
    kit=$keys/recovery-kit-$program-$(date -u +%Y%m%dT%H%M%SZ).txt
    run init --quiet --kit "$kit" || return $?
    say "new repository $repository"
    say "its recovery kit is $kit: print it, and keep it away from this machine"
    [ -z "${key_file:-}" ] || say "its key file is $key_file: keep a copy away from this machine"
}

# One event, one line: what belongs to a line stands indented below it, and is joined to it.
stamped() {
    held=
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            '  '*) held="$held · ${line#  }" ;;
            *)
                [ -z "$held" ] || say "$held"
                held=$line
                ;;
        esac
        line=
    done
    [ -z "$held" ] || say "$held"
}

# run WORD…: Strongroom with these words, its lines with their time; its status is ours.
run() {
    rm -f -- "$private/lines"
    mkfifo -- "$private/lines"
    stamped <"$private/lines" &
    reader=$!
    "$strongroom" "$@" </dev/null >"$private/lines" 2>&1 &
    child=$!
    status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # the wait was interrupted, the program is ending
        wait "$child" && status=0 || status=$?
    done
    child=
    wait "$reader" || :
    [ "$stopped" != INT ] || [ "$status" -ne 143 ] || status=130
    return "$status"
}

# back_up SOURCE WORD…: all of it, and the last line of the log.
back_up() {
    source=$1
    shift
    began=$(date +%s)
    say "begins: $mode, into $backup_dir"
    status=0
    ensure_repository || status=$?
    if [ "$status" -eq 0 ]; then
        run backup "$source" --artefact "$backup_dir" --label "run=${mode#--}" "$@" || status=$?
    fi
    say "ends with status $status after $(($(date +%s) - began)) s"
    return "$status"
}
