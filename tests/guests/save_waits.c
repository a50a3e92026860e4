// cc: -pthread
/*
 * Waits in one way for each thread, and says how each wait ended and after how long on the clock
 * of the guest. A save comes in the middle; no wait may end by EINTR, or much too early or late.
 *
 *     save_waits READY SPAN [LATE [all]]    touches READY when all wait; SPAN: milliseconds of each timed
 *                                           wait; LATE: by how many it may end late
 *
 * What has no end of its own is ended when the timed waits are over. With `all`, every wait
 * is told of.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

static long span;
static struct timespec relative;
static int pipes[2], read_pipe[2], event, sockets[2], timed_sockets[2], listener, queue, semaphores, epoll, locked, wanted;
static uint32_t words[4];
static pid_t child;
static sem_t never;

static long long now(clockid_t clock) {
    struct timespec it;
    clock_gettime(clock, &it);
    return it.tv_sec * 1000000000LL + it.tv_nsec;
}
static struct timespec after(clockid_t clock) {
    long long then = now(clock) + span * 1000000LL;
    return (struct timespec){then / 1000000000, then % 1000000000};
}

/* Timed: 0 if it ended as it should when its time was over. */
static long in_nanosleep(void) { return syscall(SYS_nanosleep, &relative, NULL); }
static long in_nanosleep_left(void) {
    struct timespec left;
    return syscall(SYS_nanosleep, &relative, &left);
}
static long in_clock_nanosleep(void) {
    struct timespec left = relative;
    return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &left, &left);
}
static long in_clock_nanosleep_until(void) {
    struct timespec until = after(CLOCK_MONOTONIC);
    return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}
static long in_poll(void) {
    struct pollfd it = {pipes[0], POLLIN, 0};
    return poll(&it, 1, span);
}
static long in_ppoll(void) {
    struct pollfd it = {pipes[0], POLLIN, 0};
    return ppoll(&it, 1, &relative, NULL);
}
static long in_select(void) {
    fd_set set;
    struct timeval time = {span / 1000, span % 1000 * 1000};
    FD_ZERO(&set);
    FD_SET(pipes[0], &set);
    return select(pipes[0] + 1, &set, NULL, NULL, &time);
}
static long in_pselect(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pipes[0], &set);
    return pselect(pipes[0] + 1, &set, NULL, NULL, &relative, NULL);
}
static long timed_out(long result, int wanted) {
    return result == -1 && errno == wanted ? 0 : result == 0 ? -1 : result;
}
static long in_futex(void) {
    return timed_out(syscall(SYS_futex, &words[0], FUTEX_WAIT_PRIVATE, 0, &relative), ETIMEDOUT);
}
static long in_futex_until(void) {
    struct timespec until = after(CLOCK_MONOTONIC);
    return timed_out(syscall(SYS_futex, &words[1], FUTEX_WAIT_BITSET_PRIVATE, 0, &until, NULL, -1), ETIMEDOUT);
}
static long in_sem_timedwait(void) {
    struct timespec until = after(CLOCK_REALTIME);
    return timed_out(sem_timedwait(&never, &until), ETIMEDOUT);
}
static long in_timerfd(void) {
    uint64_t ticks;
    struct itimerspec it = {{0, 0}, relative};
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    timerfd_settime(timer, 0, &it, NULL);
    return read(timer, &ticks, 8) == 8 ? 0 : -1;
}

/* With a timeout of which a pause has always made a new one: not measured. */
static long in_epoll(void) {
    struct epoll_event got;
    return epoll_wait(epoll, &got, 1, span);
}
static long in_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    return timed_out(sigtimedwait(&set, NULL, &relative), EAGAIN);
}
static long in_timed_receive(void) {
    char byte;
    return timed_out(recv(timed_sockets[0], &byte, 1, 0), EAGAIN);
}
static long in_semtimedop(void) {
    struct sembuf take = {1, -1, 0};
    return timed_out(semtimedop(semaphores, &take, 1, &relative), EAGAIN);
}

/* Without an end of their own. */
static long in_read(void) {
    char byte;
    return read(read_pipe[0], &byte, 1) == 1 ? 0 : -1;
}
static long in_eventfd(void) {
    uint64_t it;
    return read(event, &it, 8) == 8 ? 0 : -1;
}
static long in_accept(void) { return accept(listener, NULL, NULL) >= 0 ? 0 : -1; }
static long in_receive(void) {
    char byte;
    return recv(sockets[0], &byte, 1, 0) == 1 ? 0 : -1;
}
static long in_wait(void) {
    int status;
    return waitpid(child, &status, 0) == child ? 0 : -1;
}
static long in_msgrcv(void) {
    struct { long type; char text[4]; } it;
    return msgrcv(queue, &it, 4, 0, 0) == 1 ? 0 : -1;
}
static long in_semop(void) {
    struct sembuf take = {0, -1, 0};
    return semop(semaphores, &take, 1);
}
static long in_endless_futex(void) {
    return syscall(SYS_futex, &words[2], FUTEX_WAIT, 0, NULL);
}
static long in_endless_poll(void) {
    struct pollfd it = {sockets[0], POLLRDHUP, 0};
    return poll(&it, 1, -1) == 1 ? 0 : -1;
}
static long in_flock(void) { return flock(wanted, LOCK_EX); }

static struct wait {
    const char *name;
    long (*wait)(void);
    int kind; /* 3: by the time of day; 2: timed; 1: timed, maybe anew; 0: endless */
    pthread_t thread;
    long result;
    int error;
    long long took;
} waits[] = {
    {"nanosleep", in_nanosleep, 2, 0, 0, 0, 0},
    {"nanosleep with what is left", in_nanosleep_left, 2, 0, 0, 0, 0},
    {"clock_nanosleep", in_clock_nanosleep, 2, 0, 0, 0, 0},
    {"clock_nanosleep until", in_clock_nanosleep_until, 2, 0, 0, 0, 0},
    {"poll", in_poll, 2, 0, 0, 0, 0},
    {"ppoll", in_ppoll, 2, 0, 0, 0, 0},
    {"select", in_select, 2, 0, 0, 0, 0},
    {"pselect", in_pselect, 2, 0, 0, 0, 0},
    {"futex", in_futex, 2, 0, 0, 0, 0},
    {"futex until", in_futex_until, 2, 0, 0, 0, 0},
    {"sem_timedwait", in_sem_timedwait, 3, 0, 0, 0, 0},
    {"timerfd", in_timerfd, 2, 0, 0, 0, 0},
    {"epoll_wait", in_epoll, 1, 0, 0, 0, 0},
    {"sigtimedwait", in_sigtimedwait, 1, 0, 0, 0, 0},
    {"recv with SO_RCVTIMEO", in_timed_receive, 1, 0, 0, 0, 0},
    {"semtimedop", in_semtimedop, 1, 0, 0, 0, 0},
    {"read of a pipe", in_read, 0, 0, 0, 0, 0},
    {"eventfd", in_eventfd, 0, 0, 0, 0, 0},
    {"accept", in_accept, 0, 0, 0, 0, 0},
    {"recv", in_receive, 0, 0, 0, 0, 0},
    {"wait4", in_wait, 0, 0, 0, 0, 0},
    {"msgrcv", in_msgrcv, 0, 0, 0, 0, 0},
    {"semop", in_semop, 0, 0, 0, 0, 0},
    {"futex without end", in_endless_futex, 0, 0, 0, 0, 0},
    {"poll without end", in_endless_poll, 0, 0, 0, 0, 0},
    {"flock", in_flock, 0, 0, 0, 0, 0},
};
enum { COUNT = sizeof waits / sizeof *waits };

static void *begin(void *at) {
    struct wait *it = at;
    long long begun = now(CLOCK_MONOTONIC);
    it->result = it->wait();
    it->error = errno;
    it->took = (now(CLOCK_MONOTONIC) - begun) / 1000000;
    return NULL;
}

static void end_endless(void) {
    struct { long type; char text[4]; } message = {1, "x"};
    struct sembuf give = {0, 1, 0};
    uint64_t one = 1;
    int it = socket(AF_UNIX, SOCK_STREAM, 0);
    socklen_t length;
    struct sockaddr_storage where;
    length = sizeof where;
    getsockname(listener, (struct sockaddr *)&where, &length);
    connect(it, (struct sockaddr *)&where, length);
    if (write(event, &one, 8) != 8) perror("eventfd");
    if (write(sockets[1], "x", 1) != 1) perror("socket");
    if (write(read_pipe[1], "x", 1) != 1) perror("pipe");
    usleep(1000);
    shutdown(sockets[1], SHUT_WR);
    msgsnd(queue, &message, 1, 0);
    semop(semaphores, &give, 1);
    words[2] = 1;
    syscall(SYS_futex, &words[2], FUTEX_WAKE, 1);
    kill(child, SIGKILL);
    flock(locked, LOCK_UN);
}

int main(int count, char **arguments) {
    if (count < 3) return 2;
    span = atol(arguments[2]);
    long late = count > 3 ? atol(arguments[3]) : 500;
    relative = (struct timespec){span / 1000, span % 1000 * 1000000};
    struct timeval time = {span / 1000, span % 1000 * 1000};
    struct sockaddr any = {AF_UNIX, {0}};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    sem_init(&never, 0, 0);
    if (pipe(pipes) || pipe(read_pipe) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, timed_sockets)) return 3;
    setsockopt(timed_sockets[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    event = eventfd(0, 0);
    epoll = epoll_create1(0);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, &any, sizeof any.sa_family) || listen(listener, 1)) return 4;
    queue = msgget(IPC_PRIVATE, 0600);
    semaphores = semget(IPC_PRIVATE, 2, 0600);
    locked = open("lock", O_RDWR | O_CREAT, 0600);
    wanted = open("lock", O_RDWR);
    flock(locked, LOCK_EX);
    child = fork();
    if (child == 0) for (;;) pause();
    for (int at = 0; at < COUNT; at++) pthread_create(&waits[at].thread, NULL, begin, &waits[at]);
    usleep(20000);
    close(open(arguments[1], O_CREAT | O_WRONLY, 0600));
    for (int at = 0; at < COUNT; at++) {
        if (waits[at].kind == 0 && (at == 0 || waits[at - 1].kind != 0)) end_endless();
        pthread_join(waits[at].thread, NULL);
    }
    int failed = 0;
    for (int at = 0; at < COUNT; at++) {
        struct wait *it = &waits[at];
        int wrong = it->result != 0 || (it->kind && it->kind != 3 && it->took < span - 1) ||
                    (it->kind == 2 && it->took > span + late) ||
                    (it->kind == 1 && it->took > 2 * span + late);
        failed |= wrong;
        if (wrong || count > 4)
            printf("%s: %ld (%s) after %lld ms\n", it->name, it->result,
                   it->result ? strerror(it->error) : "fine", it->took);
    }
    msgctl(queue, IPC_RMID, NULL);
    semctl(semaphores, 0, IPC_RMID);
    puts(failed ? "failed" : "all waited");
    return failed;
}
