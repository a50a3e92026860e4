// cc: -pthread
/*
 * Timers, signals and stopped children across a save.
 *
 *     save_state READY GO     touches READY; goes on once GO exists, after the save
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
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static int failed;
#define CHECK(what) do { if (!(what)) { failed = 1; printf("line %d: not so: %s (%s)\n", __LINE__, #what, strerror(errno)); } } while (0)

static volatile sig_atomic_t got[65], value[65], code[65], missed[65], on_stack, eintr;
static char alternate[65536];
static long tid_of_handler[65];
static const char *go;

static int there(const char *name) { return access(name, F_OK) == 0; }
static void handler(int signal, siginfo_t *information, void *context) {
    (void)context;
    got[signal]++;
    value[signal] = information->si_value.sival_int;
    code[signal] = information->si_code;
    if (information->si_code == SI_TIMER) missed[signal] += information->si_overrun;
    tid_of_handler[signal] = syscall(SYS_gettid);
}
static void stays(int signal) {
    char here;
    (void)signal;
    stack_t now;
    /* The save comes while it is on its own stack. */
    while (!there(go)) usleep(10000);
    sigaltstack(NULL, &now);
    on_stack = (now.ss_flags & SS_ONSTACK) && &here >= alternate && &here < alternate + sizeof alternate ? 1 : 2;
}
static void catch_it(int signal) {
    struct sigaction it = {0};
    it.sa_sigaction = handler;
    it.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaction(signal, &it, NULL);
}
static timer_t make_timer(clockid_t clock, int signal, int number, pid_t thread) {
    struct sigevent event = {0};
    int id = -1;
    event.sigev_notify = thread ? SIGEV_THREAD_ID : SIGEV_SIGNAL;
    event.sigev_signo = signal;
    event.sigev_value.sival_int = number;
    if (thread) event.sigev_notify_thread_id = thread;
    CHECK(syscall(SYS_timer_create, clock, &event, &id) == 0);
    return (timer_t)(intptr_t)id;
}
static void set(timer_t timer, long first, long interval) {
    struct itimerspec it = {{interval / 1000, interval % 1000 * 1000000}, {first / 1000, first % 1000 * 1000000}};
    CHECK(syscall(SYS_timer_settime, (int)(intptr_t)timer, 0, &it, NULL) == 0);
}
static long left(timer_t timer) {
    struct itimerspec it;
    if (syscall(SYS_timer_gettime, (int)(intptr_t)timer, &it)) return -1;
    return it.it_value.tv_sec * 1000 + it.it_value.tv_nsec / 1000000;
}
static long elapsed(void) {
    struct timespec it;
    clock_gettime(CLOCK_MONOTONIC, &it);
    return it.tv_sec * 1000 + it.tv_nsec / 1000000;
}
static volatile pid_t other;
static void *thread(void *unused) {
    (void)unused;
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    struct sigaction it = {0};
    sigset_t none, own;
    it.sa_handler = stays;
    it.sa_flags = SA_ONSTACK;
    sigaltstack(&stack, NULL);
    sigaction(SIGUSR2, &it, NULL);
    sigemptyset(&none);
    sigemptyset(&own);
    sigaddset(&own, SIGRTMIN + 5);
    pthread_sigmask(SIG_BLOCK, &own, NULL);
    other = syscall(SYS_gettid);
    pthread_kill(pthread_self(), SIGUSR2);
    return NULL;
}
static pthread_mutex_t robust;
static void *holder(void *unused) {
    (void)unused;
    pthread_mutex_lock(&robust);
    while (!there(go)) usleep(10000);
    return NULL;
}

/* A wait that goes on can still be ended by a handler. */
static struct timespec rest;
static volatile int sleep_result, sleep_error;
static void nothing(int signal) { (void)signal; }
static void *sleeper(void *unused) {
    (void)unused;
    struct timespec long_time = {100, 0};
    sleep_result = syscall(SYS_nanosleep, &long_time, &rest);
    sleep_error = errno;
    return NULL;
}

/* What a process keeps of itself. */
static int keeps(void) {
    int signal = 0;
    prctl(PR_SET_PDEATHSIG, SIGUSR1);
    FILE *file = fopen("/proc/self/oom_score_adj", "w");
    if (file) fprintf(file, "500"), fclose(file);
    syscall(SYS_ioprio_set, 1, 0, 3 << 13);
    while (!there(go)) usleep(10000);
    CHECK(prctl(PR_GET_PDEATHSIG, &signal) == 0 && signal == SIGUSR1);
    CHECK(syscall(SYS_ioprio_get, 1, 0) == 3 << 13);
    int adjustment = 0;
    file = fopen("/proc/self/oom_score_adj", "r");
    CHECK(file && fscanf(file, "%d", &adjustment) == 1 && adjustment == 500);
    return failed;
}

int main(int count, char **arguments) {
    if (count < 3) return 2;
    go = arguments[2];
    pthread_t one, two, three;
    struct sigaction does_nothing = {0};
    does_nothing.sa_handler = nothing;
    sigaction(SIGUSR1, &does_nothing, NULL);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &attributes);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN + 1);
    sigaddset(&blocked, SIGRTMIN + 2);
    sigaddset(&blocked, SIGHUP);
    sigaddset(&blocked, SIGCHLD);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    catch_it(SIGRTMIN + 1), catch_it(SIGRTMIN + 2), catch_it(SIGHUP), catch_it(SIGCHLD);
    catch_it(SIGRTMIN + 6), catch_it(SIGRTMIN + 7), catch_it(SIGALRM), catch_it(SIGRTMIN + 5);
    pthread_create(&one, NULL, thread, NULL);
    pthread_create(&two, NULL, holder, NULL);
    pthread_create(&three, NULL, sleeper, NULL);
    while (!other) usleep(1000);

    /* A number that is not the first. */
    timer_t gone[3], once, repeats, of_thread, idle, cpu;
    for (int at = 0; at < 3; at++) gone[at] = make_timer(CLOCK_MONOTONIC, SIGRTMIN + 6, 0, 0);
    once = make_timer(CLOCK_MONOTONIC, SIGRTMIN + 6, 66, 0);
    repeats = make_timer(CLOCK_REALTIME, SIGRTMIN + 7, 77, 0);
    of_thread = make_timer(CLOCK_BOOTTIME, SIGRTMIN + 5, 55, other);
    idle = make_timer(CLOCK_MONOTONIC, SIGRTMIN + 6, 0, 0);
    cpu = make_timer(CLOCK_PROCESS_CPUTIME_ID, SIGRTMIN + 6, 0, 0);
    for (int at = 0; at < 3; at++) syscall(SYS_timer_delete, (int)(intptr_t)gone[at]);
    long armed = elapsed();
    set(once, 4000, 0);
    set(of_thread, 3000, 0);
    set(cpu, 100000, 0);
    struct itimerval real = {{0, 0}, {5, 0}};
    setitimer(ITIMER_REAL, &real, NULL);

    /* Children: one has stopped and was told of, one was not, one has died. */
    pid_t told = fork();
    if (!told) { prctl(PR_SET_PDEATHSIG, SIGTERM); for (;;) pause(); }
    pid_t keeper = fork();
    if (!keeper) { int bad = keeps(); fflush(stdout); _exit(bad); }
    pid_t untold = fork();
    if (!untold) for (;;) pause();
    int status = 0;
    kill(told, SIGSTOP);
    CHECK(waitpid(told, &status, WUNTRACED) == told && WIFSTOPPED(status));
    struct timespec no_time = {0, 0};
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigtimedwait(&child, NULL, &no_time);
    kill(untold, SIGSTOP);
    siginfo_t information;
    CHECK(waitid(P_PID, untold, &information, WSTOPPED | WNOWAIT) == 0);

    /* Signals that wait. */
    union sigval it;
    for (int at = 1; at <= 3; at++) {
        it.sival_int = at;
        sigqueue(getpid(), SIGRTMIN + 1, it);
    }
    kill(getpid(), SIGHUP);
    it.sival_int = 9;
    pthread_sigqueue(pthread_self(), SIGRTMIN + 2, it);
    long begun = elapsed(), then = elapsed();
    set(repeats, 200, 200);
    close(open(arguments[1], O_CREAT | O_WRONLY, 0600));
    while (!there(go)) usleep(1000);

    long now = elapsed();
    int kept = -1;
    CHECK(waitpid(keeper, &kept, 0) == keeper && kept == 0);
    CHECK(left(once) > 0 || got[SIGRTMIN + 6]);
    CHECK(left(idle) == 0);
    CHECK(left(cpu) > 90000 && left(cpu) <= 100000);
    CHECK(left(gone[1]) == -1);
    CHECK(labs((now - armed) + left(once) - 4000) < 700);
    printf("after %ld ms the timer has %ld ms left\n", now - armed, left(once));
    /* (On a busy machine one signal may stand for several.) */
    long expected = (now - then) / 200, ticks = got[SIGRTMIN + 7] + missed[SIGRTMIN + 7];
    CHECK(ticks >= expected - 3 && ticks <= expected + 1);
    while (!got[SIGRTMIN + 7]) usleep(1000);
    CHECK(value[SIGRTMIN + 7] == 77 && code[SIGRTMIN + 7] == SI_TIMER);
    CHECK(!got[SIGHUP] && !got[SIGRTMIN + 1] && !got[SIGRTMIN + 2]);
    sigprocmask(SIG_UNBLOCK, &blocked, NULL);
    CHECK(got[SIGHUP] == 1);
    CHECK(got[SIGRTMIN + 1] == 3 && value[SIGRTMIN + 1] == 3 && code[SIGRTMIN + 1] == SI_QUEUE);
    CHECK(got[SIGRTMIN + 2] == 1 && value[SIGRTMIN + 2] == 9);
    CHECK(got[SIGCHLD] == 1);

    /* The stopped ones. */
    CHECK(waitpid(told, &status, WUNTRACED | WNOHANG) == 0);
    CHECK(waitpid(untold, &status, WUNTRACED | WNOHANG) == untold && WIFSTOPPED(status));
    char name[64], state = 0;
    snprintf(name, sizeof name, "/proc/%d/stat", told);
    FILE *file = fopen(name, "r");
    CHECK(file && fscanf(file, "%*d %*s %c", &state) == 1 && state == 'T');
    kill(told, SIGCONT);
    CHECK(waitpid(told, &status, WCONTINUED) == told && WIFCONTINUED(status));
    kill(told, SIGKILL);
    CHECK(waitpid(told, &status, 0) == told && WIFSIGNALED(status));
    kill(untold, SIGCONT);
    kill(untold, SIGTERM);
    CHECK(waitpid(untold, &status, 0) == untold && WTERMSIG(status) == SIGTERM);

    /* The threads end as threads do. */
    CHECK(pthread_join(one, NULL) == 0 && on_stack == 1);
    pthread_kill(three, SIGUSR1);
    CHECK(pthread_join(three, NULL) == 0 && sleep_result == -1 && sleep_error == EINTR);
    CHECK(rest.tv_sec >= 80 && rest.tv_sec < 100);
    CHECK(pthread_join(two, NULL) == 0);
    CHECK(pthread_mutex_lock(&robust) == EOWNERDEAD);
    while (elapsed() < begun + 8000 && (!got[SIGRTMIN + 6] || !got[SIGALRM])) usleep(10000);
    CHECK(got[SIGRTMIN + 6] == 1 && value[SIGRTMIN + 6] == 66);
    CHECK(got[SIGALRM] == 1);
    puts(failed ? "failed" : "all so");
    return failed;
}
