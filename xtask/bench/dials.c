/* Makes connections, and is who they are made to. What it measures it prints as lines of a name and nanoseconds.
 *
 *   dials serve ADDRESS               says "serves"; see below
 *   dials connect ADDRESS COUNT       connections that are closed at once
 *   dials pull ADDRESS MIB            a connection that brings so many MiB: for each GiB
 *   dials trip ADDRESS COUNT          a byte there and back over one connection
 *   dials name DOMAIN COUNT           names below DOMAIN, each twice
 *   dials loopback                    the first three, to itself at the loopback
 *
 * A port behind COUNT or MIB is that of a proxy at the loopback, which is told where to connect (RFC 9110, 9.3.6).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* At the one a connection is closed by who accepts it, at the other it says what it wants: "s" and a number of MiB, or "e". */
enum { CLOSING = 7001, SAYING = 7002, BATCH = 50 };

static char block[1 << 20];
static int on = 1;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static struct sockaddr_in at(const char *address, int port)
{
    struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, address, &found.sin_addr) != 1)
        exit(2);
    return found;
}

static int bound(const char *address, int kind, int port)
{
    struct sockaddr_in own = at(address, port);
    int fd = socket(AF_INET, kind | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&own, sizeof own) || (kind == SOCK_STREAM && listen(fd, 4096)))
        fail("bind");
    return fd;
}

static void *close_all(void *listening)
{
    for (;;) {
        int fd = accept((int)(long)listening, NULL, NULL);
        if (fd < 0)
            fail("accept");
        /* (So that it is not this end that remembers it.) */
        (void)!read(fd, block, 1);
        close(fd);
    }
    return NULL;
}

static void do_what_is_said(int fd)
{
    char said[16] = "";
    if (read(fd, said, sizeof said - 1) < 1)
        return;
    if (said[0] == 'e') {
        /* (The first one may come with the word.) */
        if (said[1] && write(fd, said + 1, 1) != 1)
            return;
        while (read(fd, said, 1) == 1 && write(fd, said, 1) == 1)
            ;
        return;
    }
    for (long left = atol(said + 1) << 20; left > 0;) {
        ssize_t done = write(fd, block, sizeof block);
        if (done <= 0)
            return;
        left -= done;
    }
}

static void *serve_all(void *listening)
{
    for (;;) {
        int fd = accept((int)(long)listening, NULL, NULL);
        if (fd < 0)
            fail("accept");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        do_what_is_said(fd);
        close(fd);
    }
    return NULL;
}

/* Every name there is stands for this address (RFC 1035, 4.1). */
static void *name_all(void *address)
{
    unsigned char message[512];
    int fd = bound(address, SOCK_DGRAM, 53);
    for (;;) {
        struct sockaddr_in peer;
        socklen_t size = sizeof peer;
        ssize_t length = recvfrom(fd, message, sizeof message - 16, 0, (struct sockaddr *)&peer, &size);
        ssize_t end = 12;
        while (end < length && message[end])
            end += message[end] + 1;
        end += 5;
        if (length < 12 || end > length)
            continue;
        int is_a = message[end - 3] == 1;
        /* An answer, with recursion; one question, one record or none; nothing else. */
        message[2] = 0x81, message[3] = 0x80;
        memset(message + 4, 0, 8);
        message[5] = 1, message[7] = is_a;
        if (is_a) {
            static const unsigned char record[12] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4};
            struct in_addr own;
            inet_pton(AF_INET, address, &own);
            memcpy(message + end, record, sizeof record);
            memcpy(message + end + sizeof record, &own, 4);
            end += sizeof record + 4;
        }
        (void)!sendto(fd, message, end, 0, (struct sockaddr *)&peer, size);
    }
    return NULL;
}

static void start(void *(*work)(void *), void *with)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, with))
        fail("pthread_create");
}

static void serve(const char *address)
{
    start(close_all, (void *)(long)bound(address, SOCK_STREAM, CLOSING));
    start(serve_all, (void *)(long)bound(address, SOCK_STREAM, SAYING));
}

static int dial(const char *address, int port, int proxy)
{
    struct sockaddr_in peer = proxy ? at("127.0.0.1", proxy) : at(address, port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&peer, sizeof peer))
        fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (proxy) {
        char said[512];
        int length = snprintf(said, sizeof said, "CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n", address, port, address, port);
        if (write(fd, said, length) != length)
            fail("write");
        length = 0;
        do {
            ssize_t more = read(fd, said + length, sizeof said - 1 - length);
            if (more <= 0)
                fail("the proxy");
            length += more;
            said[length] = 0;
        } while (!strstr(said, "\r\n\r\n"));
        if (strncmp(said, "HTTP/1.", 7) || strncmp(said + 8, " 200", 4))
            exit(3);
    }
    return fd;
}

static void connect_many(const char *address, long count, int proxy)
{
    while ((count -= BATCH) >= 0) {
        double begin = now();
        for (int i = 0; i < BATCH; i++)
            close(dial(address, CLOSING, proxy));
        printf("connect %.0f\n", (now() - begin) / BATCH);
    }
}

static void pull(const char *address, long mib, int proxy)
{
    char said[16];
    int fd = dial(address, SAYING, proxy);
    double begin = now();
    if (write(fd, said, sprintf(said, "s%ld", mib)) < 1)
        fail("write");
    for (long left = mib << 20; left > 0;) {
        ssize_t done = read(fd, block, sizeof block);
        if (done <= 0)
            fail("read");
        left -= done;
    }
    printf("pull %.0f\n", (now() - begin) * 1024 / mib);
    close(fd);
}

static void trip(const char *address, long count, int proxy)
{
    char byte = 'x';
    int fd = dial(address, SAYING, proxy);
    if (write(fd, "ex", 2) != 2 || read(fd, &byte, 1) != 1)
        fail("write");
    double begin = now();
    for (long i = 0; i < count; i++)
        if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
            fail("a byte");
    printf("trip %.0f\n", (now() - begin) / count);
    close(fd);
}

static double look_up(const char *name)
{
    struct addrinfo wanted = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
    double begin = now();
    if (getaddrinfo(name, "80", &wanted, &found))
        exit(4);
    freeaddrinfo(found);
    return now() - begin;
}

static void look_names_up(const char *domain, long count)
{
    double first = 0, again = 0;
    for (long i = 0; i < count; i++) {
        char name[128];
        snprintf(name, sizeof name, "n%d-%ld.%s", getpid(), i, domain);
        first += look_up(name);
        again += look_up(name);
    }
    printf("name %.0f\nagain %.0f\n", first / count, again / count);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "", *where = argc > 2 ? argv[2] : "127.0.0.1";
    long count = argc > 3 ? atol(argv[3]) : 0;
    int proxy = argc > 4 ? atoi(argv[4]) : 0;
    /* Should nobody end it. */
    alarm(600);
    if (!strcmp(what, "serve")) {
        serve(where);
        start(name_all, (void *)where);
        puts("serves");
        fflush(stdout);
        pause();
    } else if (!strcmp(what, "connect")) {
        connect_many(where, count, proxy);
    } else if (!strcmp(what, "pull")) {
        pull(where, count, proxy);
    } else if (!strcmp(what, "trip")) {
        trip(where, count, proxy);
    } else if (!strcmp(what, "name")) {
        look_names_up(where, count);
    } else if (!strcmp(what, "loopback")) {
        serve(where);
        connect_many(where, 500, 0);
        pull(where, 1024, 0);
        trip(where, 5000, 0);
    } else {
        return 2;
    }
    return 0;
}
