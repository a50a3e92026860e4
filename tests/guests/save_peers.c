/*
 * Unix sockets, and who made their other ends (SO_PEERCRED), across a save.
 *
 *     save_peers READY GO    touches READY; goes on once GO exists, after the save
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

static int failed;
#define CHECK(what) do { if (!(what)) { failed = 1; printf("line %d: not so: %s (%s)\n", __LINE__, #what, strerror(errno)); } } while (0)
enum { MOST = 32 };

static int sockets[MOST], count, link_[2];
static pid_t living[8];
static int alive;

/* A child gives what it has made to the parent. */
static void give(int fd) {
    char byte = 0, room[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec one = {&byte, 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *control = CMSG_FIRSTHDR(&message);
    control->cmsg_level = SOL_SOCKET;
    control->cmsg_type = SCM_RIGHTS;
    control->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(control), &fd, sizeof fd);
    CHECK(sendmsg(link_[1], &message, 0) == 1);
}
static int take(void) {
    char byte, room[CMSG_SPACE(sizeof(int))];
    struct iovec one = {&byte, 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    int fd = -1;
    if (recvmsg(link_[0], &message, 0) == 1) memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    CHECK(fd >= 0);
    return sockets[count++] = fd;
}
static void pairs(const char *unused) {
    int both[2];
    (void)unused;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, both) == 0);
    give(both[0]);
    give(both[1]);
}
static socklen_t name(struct sockaddr_un *address, const char *path) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    /* An abstract name begins with a zero. */
    strcpy(address->sun_path + (*path == '@'), path + (*path == '@'));
    return offsetof(struct sockaddr_un, sun_path) + strlen(path) + (*path != '@');
}
static void listens(const char *path) {
    struct sockaddr_un address;
    socklen_t length = name(&address, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(fd, (void *)&address, length) == 0 && listen(fd, 5) == 0);
    give(fd);
}
static void connects(const char *path) {
    struct sockaddr_un address;
    socklen_t length = name(&address, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(connect(fd, (void *)&address, length) == 0);
    give(fd);
}
/* In a process of its own, which ends then or does not. */
static void by(int lives, void (*work)(const char *), const char *path, int gives) {
    pid_t pid = fork();
    if (pid == 0) {
        work(path);
        if (lives) for (;;) pause();
        _exit(failed);
    }
    while (gives--) take();
    if (lives) living[alive++] = pid;
    else CHECK(waitpid(pid, NULL, 0) == pid);
}
static pid_t peer(int fd) {
    struct ucred found = {0};
    socklen_t length = sizeof found;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &found, &length) == 0);
    CHECK(found.uid == geteuid() && found.gid == getegid());
    return found.pid;
}

int main(int words, char **arguments) {
    if (words < 3) return 2;
    setvbuf(stdout, NULL, _IONBF, 0);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, link_) == 0);
    for (int lives = 0; lives < 2; lives++) {
        by(lives, pairs, "", 2);
        const char *path = lives ? "s" : "@here";
        by(lives, listens, path, 1);
        int listener = sockets[count - 1];
        for (int with = 0; with < 2; with++) {
            by(with, connects, path, 1);
            CHECK((sockets[count++] = accept(listener, NULL, NULL)) >= 0);
        }
    }
    CHECK(mkdir("below", 0700) == 0);
    by(1, listens, "below/relative", 1);
    int listener = sockets[count - 1];
    by(1, connects, "below/relative", 1);
    CHECK((sockets[count++] = accept(listener, NULL, NULL)) >= 0);
    /* One that is accepted only then. */
    int socket_ = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address;
    socklen_t length = name(&address, "@here");
    CHECK(connect(socket_, (void *)&address, length) == 0);
    sockets[count++] = socket_;

    pid_t before[MOST];
    for (int at = 0; at < count; at++) before[at] = peer(sockets[at]);
    close(open(arguments[1], O_CREAT | O_WRONLY, 0600));
    struct timespec moment = {0, 2000000};
    while (access(arguments[2], F_OK) != 0) nanosleep(&moment, NULL);
    for (int at = 0; at < count; at++)
        if (peer(sockets[at]) != before[at]) {
            failed = 1;
            printf("socket %d: peer %d, before %d\n", at, peer(sockets[at]), before[at]);
        }
    int last = accept(sockets[2], NULL, NULL);
    CHECK(last >= 0 && peer(last) == getpid());
    /* They are what they were beside that. */
    char byte = 'x';
    CHECK(write(sockets[0], &byte, 1) == 1 && read(sockets[1], &byte, 1) == 1);
    CHECK(write(sockets[count - 2], &byte, 1) == 1 && read(sockets[count - 3], &byte, 1) == 1);
    while (alive) {
        CHECK(kill(living[--alive], SIGKILL) == 0);
        CHECK(waitpid(living[alive], NULL, 0) == living[alive]);
    }
    if (!failed) printf("all so\n");
    return failed;
}
