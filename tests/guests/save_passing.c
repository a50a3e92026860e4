/*
 * Has something that an image cannot carry, until it is told to take it.
 *
 *     save_passing KIND READY TAKE END    touches READY when it has it; takes it once TAKE exists, and ends
 *                                         once END does
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("line %d: not so: %s (%s)\n", __LINE__, #what, strerror(errno)); exit(1); } } while (0)

static void wait_for(const char *name) {
    struct timespec moment = {0, 1000000};
    while (access(name, F_OK) != 0) nanosleep(&moment, NULL);
}

static int one, other;

static void inotify_before(void) {
    CHECK((one = inotify_init1(IN_CLOEXEC)) >= 0);
    CHECK(mkdir("watched", 0700) == 0 || errno == EEXIST);
    CHECK(inotify_add_watch(one, "watched", IN_CREATE) >= 0);
    close(open("watched/file", O_CREAT | O_WRONLY, 0600));
}
static void inotify_take(void) {
    char room[4096];
    struct inotify_event *event = (void *)room;
    CHECK(read(one, room, sizeof room) > 0);
    CHECK(event->mask == IN_CREATE && !strcmp(event->name, "file"));
}
static void inotify_after(void) {
    char room[4096];
    close(open("watched/another", O_CREAT | O_WRONLY, 0600));
    CHECK(read(one, room, sizeof room) > 0);
    CHECK(!strcmp(((struct inotify_event *)room)->name, "another"));
}

static void connect_to(const void *name, socklen_t length, int family) {
    struct sockaddr_storage at;
    socklen_t room = sizeof at;
    CHECK((one = socket(family, SOCK_STREAM, 0)) >= 0);
    CHECK(bind(one, name, length) == 0 && listen(one, 5) == 0);
    CHECK(getsockname(one, (void *)&at, &room) == 0);
    CHECK((other = socket(family, SOCK_STREAM, 0)) >= 0);
    CHECK(connect(other, (void *)&at, room) == 0 && write(other, "early", 5) == 5);
}
static void unix_before(void) {
    struct sockaddr_un name = {AF_UNIX, "\0passing"};
    connect_to(&name, sizeof(sa_family_t) + 8, AF_UNIX);
}
static void tcp_before(void) {
    struct sockaddr_in name = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}, {0}};
    connect_to(&name, sizeof name, AF_INET);
}
static void accept_take(void) {
    char room[5];
    int accepted = accept(one, NULL, NULL);
    CHECK(accepted >= 0 && read(accepted, room, 5) == 5 && !memcmp(room, "early", 5));
    close(one);
    one = accepted;
}
static void accept_after(void) {
    char room[4];
    CHECK(write(other, "late", 4) == 4 && read(one, room, 4) == 4 && !memcmp(room, "late", 4));
}

static void ask_for_links(void) {
    struct { struct nlmsghdr header; struct rtgenmsg message; } ask = {0};
    ask.header.nlmsg_len = NLMSG_LENGTH(sizeof ask.message);
    ask.header.nlmsg_type = RTM_GETLINK;
    ask.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    ask.message.rtgen_family = AF_UNSPEC;
    CHECK(send(one, &ask, ask.header.nlmsg_len, 0) > 0);
}
static void netlink_take(void) {
    static char room[65536];
    struct nlmsghdr *header = (void *)room;
    do CHECK(recv(one, room, sizeof room, 0) > 0);
    while (header->nlmsg_type != NLMSG_DONE);
}
static void netlink_before(void) {
    CHECK((one = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)) >= 0);
    ask_for_links();
}
static void netlink_after(void) { ask_for_links(); netlink_take(); }

static void cork_before(void) {
    struct sockaddr_in name = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}, {0}};
    socklen_t length = sizeof name;
    int on = 1;
    CHECK((one = socket(AF_INET, SOCK_DGRAM, 0)) >= 0 && (other = socket(AF_INET, SOCK_DGRAM, 0)) >= 0);
    CHECK(bind(one, (void *)&name, length) == 0 && getsockname(one, (void *)&name, &length) == 0);
    CHECK(connect(other, (void *)&name, length) == 0);
    CHECK(setsockopt(other, IPPROTO_UDP, UDP_CORK, &on, sizeof on) == 0 && write(other, "half", 4) == 4);
}
static void cork_take(void) {
    int off = 0;
    CHECK(write(other, "half", 4) == 4);
    CHECK(setsockopt(other, IPPROTO_UDP, UDP_CORK, &off, sizeof off) == 0);
}
static void cork_after(void) {
    char room[9];
    CHECK(read(one, room, 9) == 8 && !memcmp(room, "halfhalf", 8));
}

static const struct { const char *name; void (*before)(void), (*take)(void), (*after)(void); } kinds[] = {
    {"inotify", inotify_before, inotify_take, inotify_after},
    {"unix", unix_before, accept_take, accept_after},
    {"tcp", tcp_before, accept_take, accept_after},
    {"netlink", netlink_before, netlink_take, netlink_after},
    {"cork", cork_before, cork_take, cork_after},
};

int main(int count, char **words) {
    unsigned kind = 0;
    setvbuf(stdout, NULL, _IONBF, 0);
    if (count != 5) return 2;
    while (kind < sizeof kinds / sizeof *kinds && strcmp(kinds[kind].name, words[1])) kind++;
    if (kind == sizeof kinds / sizeof *kinds) return 2;
    kinds[kind].before();
    close(open(words[2], O_CREAT | O_WRONLY, 0600));
    wait_for(words[3]);
    kinds[kind].take();
    wait_for(words[4]);
    kinds[kind].after();
    puts("all taken");
    return 0;
}
