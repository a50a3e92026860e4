// cc: -pthread
/*
 * Waits to be told of messages (mq_notify(3)) across a save.
 *
 *     save_notified READY GO [thread]    touches READY; goes on once GO exists, after the save. With `thread`,
 *                                        it is told by a thread
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/wait.h>

static int failed;
#define CHECK(what) do { if (!(what)) { failed = 1; printf("line %d: not so: %s (%s)\n", __LINE__, #what, strerror(errno)); } } while (0)

static const char *go;
static void wait_for(const char *name) {
    struct timespec moment = {0, 1000000};
    while (access(name, F_OK)) nanosleep(&moment, NULL);
}

static char names[5][32];
static mqd_t make(int number) {
    snprintf(names[number], sizeof names[number], "/notified-%d-%d", number, getpid());
    struct mq_attr limits = {.mq_maxmsg = 4, .mq_msgsize = 16};
    mqd_t queue = mq_open(names[number], O_CREAT | O_RDWR | O_NONBLOCK, 0600, &limits);
    CHECK(queue >= 0);
    return queue;
}
static int ask(mqd_t queue, int how, int signal, int value) {
    struct sigevent event = {0};
    event.sigev_notify = how;
    event.sigev_signo = signal;
    event.sigev_value.sival_int = value;
    return mq_notify(queue, &event);
}
/* What the signal carries, or -1 if there is none. */
static int take(int signal) {
    struct timespec moment = {0, 0};
    siginfo_t it = {0};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    if (sigtimedwait(&set, &it, &moment) != signal) return -1;
    CHECK(it.si_code == SI_MESGQ);
    return it.si_value.sival_int;
}
static int is_next(mqd_t queue, const char *text) {
    char room[16];
    ssize_t length = mq_receive(queue, room, sizeof room, NULL);
    return length == (ssize_t)strlen(text) && !memcmp(room, text, length);
}
static volatile int told;
static void by_thread(union sigval value) { told = value.sival_int; }

static int child(mqd_t queue, int ready) {
    CHECK(ask(queue, SIGEV_SIGNAL, SIGRTMIN + 2, 43) == 0);
    CHECK(write(ready, "", 1) == 1);
    sigset_t set;
    siginfo_t it = {0};
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    while (sigwaitinfo(&set, &it) < 0) CHECK(errno == EINTR);
    CHECK(it.si_value.sival_int == 43 && is_next(queue, "to the child"));
    return failed;
}

int main(int count, char **arguments) {
    setvbuf(stdout, NULL, _IONBF, 0);
    if (count < 3) return 2;
    go = arguments[2];
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    mqd_t empty = make(0);
    if (count > 3) {
        struct sigevent event = {0};
        event.sigev_notify = SIGEV_THREAD;
        event.sigev_notify_function = by_thread;
        event.sigev_value.sival_int = 7;
        CHECK(mq_notify(empty, &event) == 0);
        close(open(arguments[1], O_CREAT | O_WRONLY, 0600));
        wait_for(go);
        CHECK(mq_send(empty, "one", 3, 0) == 0);
        struct timespec moment = {0, 1000000};
        for (int at = 0; at < 5000 && told != 7; at++) nanosleep(&moment, NULL);
        CHECK(told == 7);
        mq_unlink(names[0]);
        puts(failed ? "failed" : "all so");
        return failed;
    }
    mqd_t full = make(1), silent = make(2), other = make(3);
    CHECK(ask(empty, SIGEV_SIGNAL, SIGRTMIN + 1, 41) == 0);
    CHECK(mq_send(full, "low", 3, 1) == 0 && mq_send(full, "high", 4, 9) == 0);
    CHECK(ask(full, SIGEV_SIGNAL, SIGUSR1, 42) == 0);
    CHECK(mq_send(silent, "quiet", 5, 1) == 0 && ask(silent, SIGEV_NONE, 0, 0) == 0);
    int ready[2], status = -1;
    CHECK(pipe(ready) == 0);
    pid_t pid = fork();
    if (!pid) _exit(child(other, ready[1]));
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1);
    close(open(arguments[1], O_CREAT | O_WRONLY, 0600));
    wait_for(go);

    CHECK(take(SIGRTMIN + 1) == -1 && take(SIGUSR1) == -1);
    CHECK(ask(empty, SIGEV_NONE, 0, 0) == -1 && errno == EBUSY);
    CHECK(ask(full, SIGEV_NONE, 0, 0) == -1 && errno == EBUSY);
    CHECK(ask(silent, SIGEV_NONE, 0, 0) == -1 && errno == EBUSY);
    CHECK(ask(other, SIGEV_NONE, 0, 0) == -1 && errno == EBUSY);
    CHECK(mq_send(empty, "one", 3, 0) == 0 && take(SIGRTMIN + 1) == 41 && is_next(empty, "one"));
    CHECK(mq_send(empty, "two", 3, 0) == 0 && take(SIGRTMIN + 1) == -1 && is_next(empty, "two"));
    /* Only the first message into an empty queue is told of. */
    CHECK(mq_send(full, "last", 4, 0) == 0 && take(SIGUSR1) == -1);
    CHECK(is_next(full, "high") && is_next(full, "low") && is_next(full, "last"));
    CHECK(mq_receive(full, &byte, 1, NULL) == -1);
    CHECK(mq_send(full, "new", 3, 0) == 0 && take(SIGUSR1) == 42);
    CHECK(is_next(silent, "quiet") && mq_notify(silent, NULL) == 0);
    CHECK(ask(silent, SIGEV_NONE, 0, 0) == 0);
    CHECK(mq_send(other, "to the child", 12, 0) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    for (int at = 0; at < 4; at++) mq_unlink(names[at]);
    puts(failed ? "failed" : "all so");
    return failed;
}
