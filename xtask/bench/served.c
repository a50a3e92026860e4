/* Serves one connection after the other at a port of the loopback. Says "serves" first. A connection sends a letter and a
 * number: 's' has so many MiB sent to it; 'e' has a byte sent, and then
 * so many single bytes sent back. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <netinet/tcp.h>
#include <unistd.h>

static char block[1 << 20];

static void serve(int fd)
{
    char asked[16] = "";
    char byte;
    if (read(fd, asked, sizeof asked - 1) < 2)
        return;
    long count = atol(asked + 1);
    if (asked[0] == 'e' && write(fd, asked, 1) != 1)
        return;
    for (long i = 0; i < count; i++) {
        if (asked[0] == 'e') {
            if (read(fd, &byte, 1) != 1 || write(fd, &byte, 1) != 1)
                return;
            continue;
        }
        for (size_t sent = 0; sent < sizeof block;) {
            ssize_t done = write(fd, block + sent, sizeof block - sent);
            if (done <= 0)
                return;
            sent += done;
        }
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
    int on = 1, listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listening, (struct sockaddr *)&own, sizeof own) || listen(listening, 64)) {
        perror("listen");
        return 1;
    }
    /* Should nobody end it. */
    alarm(300);
    puts("serves");
    fflush(stdout);
    for (;;) {
        int fd = accept(listening, NULL, NULL);
        if (fd < 0)
            return 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        serve(fd);
        close(fd);
    }
}
