// cc: -pthread
/*
 * Timers that expire more often than they are noticed, across a save.
 *
 *     save_overruns READY GO [exact]    touches READY; goes on once GO exists, after the save. With `exact`,
 *                                       nothing has happened to the clock in between
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define MS 1000000LL
#define LONG (20000 * MS)
#define SHORT (10 * MS)

static int failed;
#define CHECK(what) do { if (!(what)) { failed = 1; printf("line %d: not so: %s (%s)\n", __LINE__, #what, strerror(errno)); } } while (0)

static const char *go;
static int exact;

static long long now(clockid_t clock) {
    struct timespec it;
    clock_gettime(clock, &it);
    return it.tv_sec * 1000000000LL + it.tv_nsec;
}
static void rest(long long time) {
    struct timespec it = {time / 1000000000, time % 1000000000};
    while (nanosleep(&it, &it)) {}
}
static int make(clockid_t clock, int signal, int value, pid_t thread) {
    struct sigevent event = {0};
    int id = -1;
    event.sigev_notify = thread ? SIGEV_THREAD_ID : SIGEV_SIGNAL;
    event.sigev_signo = signal;
    event.sigev_value.sival_int = value;
    if (thread) event.sigev_notify_thread_id = thread;
    CHECK(syscall(SYS_timer_create, clock, &event, &id) == 0);
    return id;
}
static void set(int timer, int how, long long first, long long interval) {
    struct itimerspec it = {{interval / 1000000000, interval % 1000000000}, {first / 1000000000, first % 1000000000}};
    CHECK(syscall(SYS_timer_settime, timer, how, &it, NULL) == 0);
}
/* It has expired `count` times more than once, and does again in half an interval. */
static void set_back(int timer, clockid_t clock, int count) {
    set(timer, TIMER_ABSTIME, now(clock) - count * LONG - LONG / 2, LONG);
}
static long long left(int timer) {
    struct itimerspec it;
    if (syscall(SYS_timer_gettime, timer, &it)) return -1;
    return it.it_value.tv_sec * 1000000000LL + it.it_value.tv_nsec;
}
static int count_of(int timer) { return syscall(SYS_timer_getoverrun, timer); }

/* Takes a signal; gives what the kernel has counted, or -1 if there is none. */
static __thread int value, code;
static int take(int signal) {
    struct timespec moment = {0, 0};
    siginfo_t it = {0};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    if (sigtimedwait(&set, &it, &moment) != signal) return -1;
    value = it.si_value.sival_int;
    code = it.si_code;
    return it.si_overrun;
}
static int take_soon(int signal) {
    int count;
    while ((count = take(signal)) < 0) rest(MS);
    return count;
}
static void wait_to_go(void) { while (access(go, F_OK)) rest(MS); }

/* Timers that tell one thread: of one the signal was taken, of another it waits. */
static volatile int ready;
static void *thread(void *unused) {
    (void)unused;
    pid_t own = syscall(SYS_gettid);
    int taken = make(CLOCK_REALTIME, SIGRTMIN + 9, 9, own), waits = make(CLOCK_BOOTTIME, SIGRTMIN + 10, 10, own);
    set_back(taken, CLOCK_REALTIME, 4);
    CHECK(take_soon(SIGRTMIN + 9) == 4);
    long long first = now(CLOCK_BOOTTIME) + SHORT;
    set(waits, TIMER_ABSTIME, first, SHORT);
    rest(20 * SHORT);
    long long least = (now(CLOCK_BOOTTIME) - first) / SHORT;
    ready = 1;
    wait_to_go();
    CHECK(count_of(taken) == 4 && take(SIGRTMIN + 9) == -1);
    CHECK(count_of(waits) == 0);
    long long before = (now(CLOCK_BOOTTIME) - first) / SHORT;
    int count = take(SIGRTMIN + 10);
    long long most = (now(CLOCK_BOOTTIME) - first) / SHORT;
    printf("of a thread: %d of %lld to %lld\n", count, least, most);
    CHECK(count >= least && count <= most && value == 10 && count_of(waits) == count);
    CHECK(!exact || count >= before - 2);
    return NULL;
}

/* Whether a signal is dropped when its timer is set anew before it is taken (since Linux 6.13). */
static int is_dropped(void) {
    int timer = make(CLOCK_MONOTONIC, SIGRTMIN + 1, 1, 0);
    set(timer, TIMER_ABSTIME, 1, LONG);
    rest(2 * MS);
    set(timer, 0, LONG, LONG);
    int dropped = take(SIGRTMIN + 1) == -1;
    syscall(SYS_timer_delete, timer);
    return dropped;
}

int main(int count, char **arguments) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count < 3) return 2;
    go = arguments[2];
    exact = count > 3;
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    pthread_t other;
    pthread_create(&other, NULL, thread, NULL);
    while (!ready) rest(MS);
    int dropped = is_dropped();

    int taken = make(CLOCK_REALTIME, SIGRTMIN + 2, 2, 0), waits = make(CLOCK_REALTIME, SIGRTMIN + 3, 3, 0);
    int often = make(CLOCK_MONOTONIC, SIGRTMIN + 4, 4, 0), once = make(CLOCK_MONOTONIC, SIGUSR1, 5, 0);
    int anew = make(CLOCK_MONOTONIC, SIGRTMIN + 6, 6, 0), between = make(CLOCK_REALTIME, SIGRTMIN + 7, 7, 0);
    int again = make(CLOCK_MONOTONIC, SIGRTMIN + 8, 8, 0), idle = make(CLOCK_REALTIME, SIGUSR2, 11, 0);
    set_back(taken, CLOCK_REALTIME, 5);
    CHECK(take_soon(SIGRTMIN + 2) == 5 && count_of(taken) == 5);
    set_back(waits, CLOCK_REALTIME, 3);
    set(once, TIMER_ABSTIME, 1, 0);
    set(anew, TIMER_ABSTIME, 1, LONG);
    /* Its count is forgotten. */
    set_back(idle, CLOCK_REALTIME, 2);
    CHECK(take_soon(SIGUSR2) == 2);
    set(idle, 0, 0, 0);
    union sigval it = {.sival_int = 1};
    sigqueue(getpid(), SIGRTMIN + 7, it);
    set_back(between, CLOCK_REALTIME, 1);
    rest(2 * MS);
    it.sival_int = 2;
    sigqueue(getpid(), SIGRTMIN + 7, it);
    set(anew, 0, LONG, LONG);
    long long first = now(CLOCK_MONOTONIC) + SHORT;
    set(often, TIMER_ABSTIME, first, SHORT);
    set(again, 0, SHORT, SHORT);
    rest(30 * SHORT);
    int before = take(SIGRTMIN + 8);
    CHECK(before > 20);
    rest(2 * SHORT);
    long long least = (now(CLOCK_MONOTONIC) - first) / SHORT, begun = now(CLOCK_MONOTONIC);
    close(open(arguments[1], O_CREAT | O_WRONLY, 0600));
    wait_to_go();

    CHECK(count_of(taken) == 5 && take(SIGRTMIN + 2) == -1);
    CHECK(count_of(waits) == 0 && take(SIGRTMIN + 3) == 3 && value == 3 && code == SI_TIMER);
    CHECK(count_of(waits) == 3 && take(SIGRTMIN + 3) == -1);
    long long passed = now(CLOCK_MONOTONIC) - begun;
    CHECK(llabs(left(taken) - (LONG / 2 - passed)) < 1500 * MS);
    CHECK(llabs(left(waits) - (LONG / 2 - passed)) < 1500 * MS);
    CHECK(count_of(often) == 0);
    long long until = (now(CLOCK_MONOTONIC) - first) / SHORT;
    int found = take(SIGRTMIN + 4);
    long long most = (now(CLOCK_MONOTONIC) - first) / SHORT;
    printf("of the process: %d of %lld to %lld\n", found, least, most);
    CHECK(found >= least && found <= most && value == 4 && count_of(often) == found);
    CHECK(!exact || found >= until - 2);
    set(often, 0, 0, 0);
    CHECK(take(SIGUSR1) == 0 && value == 5 && left(once) == 0 && take(SIGUSR1) == -1);
    CHECK((take(SIGRTMIN + 6) == -1) == dropped && left(anew) > LONG / 2);
    CHECK(left(idle) == 0 && count_of(idle) == 0);
    CHECK(take(SIGRTMIN + 7) >= 0 && value == 1 && code == SI_QUEUE);
    CHECK(take(SIGRTMIN + 7) >= 0 && value == 7 && code == SI_TIMER);
    CHECK(take(SIGRTMIN + 7) >= 0 && value == 2 && code == SI_QUEUE);
    CHECK(take(SIGRTMIN + 7) == -1);
    /* What is counted of the last one is lost where the next one waits. */
    CHECK(!exact || count_of(again) == before);
    CHECK(take(SIGRTMIN + 8) >= 0 && value == 8);
    CHECK(pthread_join(other, NULL) == 0);
    puts(failed ? "failed" : "all so");
    return failed;
}
