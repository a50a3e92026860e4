// cc: -pthread
/*
 * Threads and processes that are busy with each other and check themselves, until the input ends.
 *
 * No signal has a handler, so that a call which fails with EINTR is a failure, as is a byte that is
 * lost, doubled or out of order.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/sem.h>
#include <sys/wait.h>

static int over;
static int failures;
static long rounds[6];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static long turn;

static int going(void) {
    return !__atomic_load_n(&over, __ATOMIC_RELAXED);
}

static void fail(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    fflush(stdout);
    __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);
}

/* A sequence of numbers through a child and back. */
static void *pipes(void *unused) {
    int there[2], back[2];
    if (pipe(there) || pipe(back)) return fail("pipe"), unused;
    pid_t pid = fork();
    uint32_t number = 0, got;
    if (pid == 0) {
        close(there[1]);
        while (read(there[0], &number, 4) == 4)
            if (write(back[1], &number, 4) != 4) _exit(1);
        _exit(0);
    }
    for (; going(); number++, rounds[0]++) {
        if (write(there[1], &number, 4) != 4) return fail("write"), unused;
        if (read(back[0], &got, 4) != 4) return fail("read"), unused;
        if (got != number) return fail("order"), unused;
    }
    close(there[1]);
    int status;
    if (waitpid(pid, &status, 0) != pid || status) fail("child");
    return unused;
}

static int wanted_status;

static void *children(void *unused) {
    for (; going(); rounds[1]++) {
        int status;
        wanted_status = (int)(rounds[1] % 100);
        pid_t pid = rounds[1] % 2 ? fork() : vfork();
        if (pid == 0) _exit(wanted_status);
        if (pid < 0 || waitpid(pid, &status, 0) != pid) return fail("fork"), unused;
        if (status != wanted_status << 8) return fail("status"), unused;
    }
    return unused;
}

static void *turns(void *mine) {
    pthread_mutex_lock(&mutex);
    while (going()) {
        struct timespec limit;
        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_sec += 1;
        if (turn % 2 != (long)mine) {
            int error = pthread_cond_timedwait(&turned, &mutex, &limit);
            if (error && error != ETIMEDOUT) errno = error, fail("condition");
            continue;
        }
        turn++;
        rounds[2]++;
        pthread_cond_signal(&turned);
    }
    pthread_mutex_unlock(&mutex);
    return NULL;
}

static int ring[2];

static void *epolls(void *mine) {
    int own = epoll_create1(0);
    struct epoll_event interest = {.events = EPOLLIN};
    if (epoll_ctl(own, EPOLL_CTL_ADD, ring[(long)mine], &interest)) return fail("epoll_ctl"), NULL;
    while (going()) {
        struct epoll_event got;
        uint64_t value = 1;
        int ready = epoll_wait(own, &got, 1, 200);
        if (ready < 0) return fail("epoll_wait"), NULL;
        if (ready && read(ring[(long)mine], &value, 8) != 8) return fail("eventfd"), NULL;
        if (ready) rounds[3]++;
        value = 1;
        if (write(ring[1 - (long)mine], &value, 8) != 8) return fail("eventfd"), NULL;
    }
    return NULL;
}

static void *semaphores(void *unused) {
    int id = semget(IPC_PRIVATE, 1, 0600);
    struct sembuf take = {0, -1, 0};
    struct timespec limit = {0, 3000000};
    for (; going(); rounds[4]++)
        if (!semtimedop(id, &take, 1, &limit) || errno != EAGAIN) return fail("semtimedop"), unused;
    semctl(id, 0, IPC_RMID);
    return unused;
}

static void *sums(void *unused) {
    for (; going(); rounds[5]++) {
        double sum = 0;
        for (int i = 1; i <= 100000; i++) sum += 1.0 / i;
        if (sum < 12.0901461298 || sum > 12.0901461299) return fail("sum"), unused;
    }
    return unused;
}

int main(void) {
    /* One of the two begins: the time of a wait begins anew with each pause. */
    ring[0] = eventfd(1, 0);
    ring[1] = eventfd(0, 0);
    void *(*work[])(void *) = {pipes, children, turns, turns, epolls, epolls, semaphores, sums};
    pthread_t threads[8];
    for (long i = 0; i < 8; i++)
        if (pthread_create(&threads[i], NULL, work[i], (void *)(i % 2))) return 2;
    printf("ready\n");
    fflush(stdout);
    char byte;
    if (read(0, &byte, 1)) fail("input");
    __atomic_store_n(&over, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 6; i++)
        if (!rounds[i]) printf("nothing was done of %d\n", i), failures++;
    if (!failures) printf("ok\n");
    return failures != 0;
}
