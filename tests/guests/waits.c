// cc: -pthread
/*
 * Waits in every way at once, until a line comes on standard input; then each wait is ended as it
 * should be. A wait that ends otherwise, or with an error, is a failure. No signal has a handler.
 *
 *     waits [log]          log: also in syslog(2) READ, which the sandbox serves
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <linux/aio_abi.h>
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

static int epolls[3], event, pipes[2], sockets[2], semaphores, queue, timer, lock, other_lock;
static uint32_t word;
static pid_t child;
static const struct timespec minute = {60, 0}, second = {1, 500000000};
static char log_text[65536];

static long in_epoll_wait(void) {
    struct epoll_event got;
    return epoll_wait(epolls[0], &got, 1, -1) == 1 ? 0 : -1;
}
static long in_epoll_pwait(void) {
    struct epoll_event got;
    return epoll_pwait(epolls[1], &got, 1, 60000, NULL) == 1 ? 0 : -1;
}
static long in_epoll_pwait2(void) {
    struct epoll_event got;
    return syscall(SYS_epoll_pwait2, epolls[2], &got, 1, &minute, NULL, 0) == 1 ? 0 : -1;
}
static long in_semop(void) {
    struct sembuf take = {0, -1, 0};
    return semop(semaphores, &take, 1);
}
static long in_semtimedop(void) {
    struct sembuf take = {1, -1, 0};
    return semtimedop(semaphores, &take, 1, &minute);
}
static long in_nanosleep(void) {
    return nanosleep(&second, NULL);
}
static long in_clock_nanosleep(void) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 2;
    errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    return errno ? -1 : 0;
}
static long in_futex(void) {
    return syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL);
}
static long in_timed_futex(void) {
    return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &minute);
}
static long in_read(void) {
    char byte;
    return read(pipes[0], &byte, 1) == 1 ? 0 : -1;
}
static long in_timed_receive(void) {
    char byte;
    return recv(sockets[0], &byte, 1, 0) == 1 ? 0 : -1;
}
static long in_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    return sigtimedwait(&set, NULL, &minute) == SIGUSR1 ? 0 : -1;
}
static long in_poll(void) {
    struct pollfd poller = {event, POLLIN, 0};
    return poll(&poller, 1, 60000) == 1 ? 0 : -1;
}
static long in_select(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(event, &set);
    struct timeval limit = {60, 0};
    return select(event + 1, &set, NULL, NULL, &limit) == 1 ? 0 : -1;
}
static long in_msgrcv(void) {
    struct { long type; char text[8]; } message;
    return msgrcv(queue, &message, sizeof message.text, 0, 0) >= 0 ? 0 : -1;
}
static long in_io_getevents(void) {
    aio_context_t context = 0;
    struct io_event got;
    struct timespec limit = {3, 0};
    if (syscall(SYS_io_setup, 1, &context)) return errno == ENOSYS || errno == EPERM ? 0 : -1;
    return syscall(SYS_io_getevents, context, 1, 1, &got, &limit) == 0 ? 0 : -1;
}
static long in_timerfd(void) {
    uint64_t expirations;
    return read(timer, &expirations, 8) == 8 ? 0 : -1;
}
static long in_wait(void) {
    return waitpid(child, NULL, 0) == child ? 0 : -1;
}
static long in_flock(void) {
    return flock(other_lock, LOCK_EX);
}
static long in_log(void) {
    return syscall(SYS_syslog, 2, log_text, sizeof log_text) > 0 ? 0 : -1;
}

static struct wait_kind {
    const char *name;
    long (*wait)(void);
    pthread_t thread;
    long result;
    int error;
} kinds[] = {
#define KIND(name) {#name, in_##name, 0, 0, 0}
    KIND(epoll_wait), KIND(epoll_pwait), KIND(epoll_pwait2), KIND(semop), KIND(semtimedop),
    KIND(nanosleep), KIND(clock_nanosleep), KIND(futex), KIND(timed_futex), KIND(read),
    KIND(timed_receive), KIND(sigtimedwait), KIND(poll), KIND(select), KIND(msgrcv),
    KIND(io_getevents), KIND(timerfd), KIND(wait), KIND(flock), KIND(log),
};

static void *waiting(void *argument) {
    struct wait_kind *kind = argument;
    errno = 0;
    kind->result = kind->wait();
    kind->error = errno;
    return NULL;
}

static int failed(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    return 1;
}

int main(int argc, char **argv) {
    int count = sizeof kinds / sizeof *kinds - !(argc > 1 && !strcmp(argv[1], "log"));
    sigset_t awaited;
    sigemptyset(&awaited);
    sigaddset(&awaited, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &awaited, NULL);
    event = eventfd(0, 0);
    struct epoll_event interest = {.events = EPOLLIN};
    for (int i = 0; i < 3; i++) {
        epolls[i] = epoll_create1(0);
        if (epoll_ctl(epolls[i], EPOLL_CTL_ADD, event, &interest)) return failed("epoll");
    }
    semaphores = semget(IPC_PRIVATE, 2, 0600);
    queue = msgget(IPC_PRIVATE, 0600);
    timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec due = {.it_value = {2, 0}};
    struct timeval limit = {60, 0};
    lock = open("lock", O_RDWR | O_CREAT, 0600);
    other_lock = open("lock", O_RDWR);
    if (semaphores < 0 || queue < 0 || timer < 0 || timerfd_settime(timer, 0, &due, NULL) ||
        pipe(pipes) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) ||
        setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) ||
        flock(lock, LOCK_EX))
        return failed("prepare");
    int life[2];
    if (pipe(life)) return failed("pipe");
    if ((child = fork()) == 0) {
        char byte;
        close(life[1]);
        _exit(read(life[0], &byte, 1) == 0 ? 0 : 1);
    }
    /* What is in the log already would end the wait at once. */
    if (kinds[count - 1].wait == in_log) syscall(SYS_syslog, 2, log_text, sizeof log_text);
    for (int i = 0; i < count; i++)
        if (pthread_create(&kinds[i].thread, NULL, waiting, &kinds[i])) return failed("thread");
    printf("ready\n");
    fflush(stdout);
    char line[16];
    if (!fgets(line, sizeof line, stdin)) return 2;

    uint64_t one = 1;
    struct sembuf give[] = {{0, 1, 0}, {1, 1, 0}};
    struct { long type; char text[8]; } message = {1, "hello"};
    if (write(event, &one, 8) != 8 || semop(semaphores, give, 2) || write(pipes[1], "x", 1) != 1 ||
        send(sockets[1], "x", 1, 0) != 1 || msgsnd(queue, &message, 6, 0))
        return failed("wake");
    close(life[1]);
    flock(lock, LOCK_UN);
    kill(getpid(), SIGUSR1);
    word = 1;
    syscall(SYS_futex, &word, FUTEX_WAKE, 100);
    /* Unknown to every kernel, so it is noted in the log. */
    syscall(1500);
    int bad = 0;
    for (int i = 0; i < count; i++) {
        pthread_join(kinds[i].thread, NULL);
        /* (A futex that was not waited for yet when the word changed.) */
        if (kinds[i].result && kinds[i].error != EAGAIN) {
            printf("%s: %s\n", kinds[i].name, strerror(kinds[i].error));
            bad = 1;
        }
    }
    semctl(semaphores, 0, IPC_RMID);
    msgctl(queue, IPC_RMID, NULL);
    if (!bad) printf("ok\n");
    return bad;
}
