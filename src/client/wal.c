/* strongroom-wal: `strongroom wal push` and `wal fetch`, asked of the daemon without an interpreter.
 *
 * PostgreSQL starts this for every segment, and a Python that does nothing costs ten times as much
 * as all that is done here. What this says to the daemon is what cli/wal_client.py says, which is the
 * specification. Whatever is not understood here, or not answered by a daemon, is no mistake: the
 * Python command beside this file is run in its place, with the same words.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { DIRECT = 255, PATIENCE = 60, QUESTION_LIMIT = 64 * 1024, ANSWER_LIMIT = 1 << 20 };

struct asked {
    const char *verb, *socket, *config, *source, *words[2];
    int alone, partial, standby;
};

/* 1: understood; 0: for the command itself. */
static int read_words(int argc, char **argv, struct asked *a)
{
    int count = 0, wanted;
    if (argc < 2)
        return 0;
    a->verb = argv[1];
    wanted = !strcmp(a->verb, "push") ? 1 : !strcmp(a->verb, "fetch") ? 2 : 0;
    for (int i = 2; wanted && i < argc; i++) {
        const char *word = argv[i], *equals = strchr(word, '=');
        size_t length = equals ? (size_t)(equals - word) : strlen(word);
        const char **value = NULL;
        if (word[0] != '-') {
            if (count == wanted)
                return 0;
            a->words[count++] = word;
            continue;
        }
#define IS(name) (length == sizeof name - 1 && !memcmp(word, name, length))
        if (!equals && IS("--alone"))
            a->alone = 1;
        else if (!equals && IS("--partial"))
            a->partial = 1;
        else if (!equals && IS("--standby"))
            a->standby = 1;
        else if (IS("--socket"))
            value = &a->socket;
        else if (IS("--config") || (!equals && IS("-c")))
            value = &a->config;
        else if (IS("--source"))
            value = &a->source;
        else
            return 0;
#undef IS
        if (value)
            *value = equals ? equals + 1 : i + 1 < argc ? argv[++i] : "";
    }
    if (!wanted || count != wanted)
        return 0;
    return wanted == 2 || !(a->alone || a->partial || a->standby);
}

static const char *set(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static int real(const char *path, char into[PATH_MAX])
{
    struct stat found;
    return !stat(path, &found) && realpath(path, into);
}

/* The configuration that the command would read: cli/wal_client.py, config/places.py. -1: too long. */
static int configuration(const char *named, char into[PATH_MAX])
{
    char path[PATH_MAX];
    const char *home;
    int size;
    into[0] = 0;
    if (named) {
        if (!real(named, into))
            into[0] = 0;
        return 0;
    }
    if (real("strongroom.toml", into))
        return 0;
    if ((home = set("XDG_CONFIG_HOME")))
        size = snprintf(path, sizeof path, "%s/strongroom/strongroom.toml", home);
    else
        size = snprintf(path, sizeof path, "%s/.config/strongroom/strongroom.toml",
                        set("HOME") ? set("HOME") : "/");
    if (size < 0 || (size_t)size >= sizeof path)
        return -1;
    if (!real(path, into) && !real("/etc/strongroom/strongroom.toml", into))
        into[0] = 0;
    return 0;
}

static int address(const char *name, struct sockaddr_un *to, socklen_t *length)
{
    size_t size = strlen(name);
    memset(to, 0, sizeof *to);
    to->sun_family = AF_UNIX;
    if (!size || size >= sizeof to->sun_path)
        return 0;
    memcpy(to->sun_path, name, size);
    if (name[0] == '@')
        to->sun_path[0] = 0; /* a name of the kernel's, without a file */
    *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size + (name[0] != '@'));
    return 1;
}

static int all(int channel, void *into, size_t size)
{
    for (char *at = into; size;) {
        ssize_t got = recv(channel, at, size, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        at += got, size -= (size_t)got;
    }
    return 1;
}

static int send_all(int channel, const char *question, size_t size, int folder)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } right = {{0}};
    struct iovec part = {(void *)question, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = right.space,
                             .msg_controllen = sizeof right.space};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    ssize_t sent;
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &folder, sizeof(int));
    do
        sent = sendmsg(channel, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return 0;
    for (size_t at = (size_t)sent; at < size; at += (size_t)sent) {
        sent = send(channel, question + at, size - at, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            return 0;
        sent = sent < 0 ? 0 : sent;
    }
    return 1;
}

/* What the daemon answers, and -1 for none, or none for us. Its words go to stderr. */
static int answer(int channel)
{
    uint8_t head[6];
    uint32_t size;
    char *said;
    do
        if (!all(channel, head, 1))
            return -1;
    while (head[0] == '.');
    if (head[0] != '=' || !all(channel, head + 1, 5) || head[1] == DIRECT)
        return -1;
    size = head[2] | (uint32_t)head[3] << 8 | (uint32_t)head[4] << 16 | (uint32_t)head[5] << 24;
    if (size > ANSWER_LIMIT || !(said = malloc(size + 1)))
        return -1;
    if (!all(channel, said, size)) {
        free(said);
        return -1;
    }
    said[size] = '\n';
    if (size)
        for (size_t at = 0; at < (size_t)size + 1;) {
            ssize_t wrote = write(2, said + at, size + 1 - at);
            if (wrote <= 0)
                break; /* nobody reads what we say */
            at += (size_t)wrote;
        }
    free(said);
    return head[1];
}

static int ask(const char *name, const char *question, size_t size)
{
    struct sockaddr_un to;
    struct timeval patience = {PATIENCE, 0};
    struct ucred peer;
    socklen_t length, have = sizeof peer;
    int status = -1, folder = -1;
    int channel = address(name, &to, &length) ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
    if (channel < 0)
        return -1;
    setsockopt(channel, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(channel, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (!connect(channel, (struct sockaddr *)&to, length)
        && !getsockopt(channel, SOL_SOCKET, SO_PEERCRED, &peer, &have)
        && (peer.uid == 0 || peer.uid == geteuid())
        && (folder = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0
        && send_all(channel, question, size, folder))
        status = answer(channel);
    if (folder >= 0)
        close(folder);
    close(channel);
    return status;
}

static size_t add(char *question, size_t at, const char *field, int last)
{
    size_t size = strlen(field) + !last; /* fields are parted by NUL */
    if (at + size > QUESTION_LIMIT)
        return QUESTION_LIMIT + 1;
    memcpy(question + at, field, size);
    return at + size;
}

static int quick(const struct asked *a)
{
    static char question[QUESTION_LIMIT + 1];
    char config[PATH_MAX], flags[32] = "", helper[96];
    const char *repository = getenv("STRONGROOM_REPOSITORY");
    int fetching = !strcmp(a->verb, "fetch"), status;
    const char *named = a->config && *a->config ? a->config : set("STRONGROOM_CONFIG");
    const char *place = a->socket && *a->socket ? a->socket : set("STRONGROOM_WAL_SOCKET");
    struct stat here;
    size_t at = 8;
    if (configuration(named, config))
        return -1;
    snprintf(flags, sizeof flags, "%s%s%s", a->alone ? ",alone" : "", a->partial ? ",partial" : "",
             a->standby ? ",standby" : "");
    const char *fields[] = {a->verb, config, repository ? repository : "", a->source ? a->source : "",
                            fetching ? a->words[0] : "", a->words[fetching],
                            flags + (flags[0] == ',')};
    for (size_t i = 0; i < 7 && at <= QUESTION_LIMIT; i++)
        at = add(question, at, fields[i], i == 6);
    if (at > QUESTION_LIMIT)
        return -1;
    memcpy(question, "SRW1", 4);
    for (int i = 0; i < 4; i++)
        question[4 + i] = (char)((at - 8) >> (8 * i) & 0xFF);
    status = ask(place ? place : "/run/strongroom/wal.sock", question, at);
    if (status < 0 && fetching && !stat(".", &here)) {
        snprintf(helper, sizeof helper, "@strongroom-wal-%lu-%lu-%lu", (unsigned long)geteuid(),
                 (unsigned long)here.st_dev, (unsigned long)here.st_ino);
        status = ask(helper, question, at);
    }
    return status;
}

static void stopped(int number)
{
    (void)number;
    _exit(1);
}

/* The Python command, which lies beside this file; it begins with our words behind `wal`. */
static int command(int argc, char **argv)
{
    char path[PATH_MAX + 16];
    char **words = calloc((size_t)argc + 2, sizeof *words);
    ssize_t size = readlink("/proc/self/exe", path, PATH_MAX);
    char *slash;
    if (size > 0 && words) {
        path[size] = 0;
        if ((slash = strrchr(path, '/'))) {
            strcpy(slash + 1, "strongroom");
            words[0] = path;
            words[1] = "wal";
            for (int i = 1; i < argc; i++)
                words[i + 1] = argv[i];
            execv(path, words);
        }
    }
    fprintf(stderr, "strongroom-wal: the command strongroom is not beside it: %s\n", strerror(errno));
    /* PostgreSQL takes a status up to 125 of a fetch for the end of the log. */
    return argc > 1 && !strcmp(argv[1], "fetch") ? 201 : 1;
}

int main(int argc, char **argv)
{
    struct asked a = {0};
    int status = -1;
    if (read_words(argc, argv, &a)) {
        if (!strcmp(a.verb, "push")) /* ended by a signal, it would end the archiver too */
            signal(SIGTERM, stopped);
        status = quick(&a);
        signal(SIGTERM, SIG_DFL);
    }
    return status >= 0 ? status : command(argc, argv);
}
