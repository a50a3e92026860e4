// cc: -pthread
/*
 * Processes whose ends undo what they did to semaphores (SEM_UNDO), across a save.
 *
 *     save_undo READY GO [exact]    touches READY; goes on once GO exists, after the save. With `exact`, who
 *                                   used a semaphore last is the same, too
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/sem.h>
#include <sys/wait.h>

static int failed;
#define CHECK(what) do { if (!(what)) { failed = 1; printf("line %d: not so: %s (%s)\n", __LINE__, #what, strerror(errno)); } } while (0)

static int set;
static int change(int number, int by, int flags) {
    struct sembuf it = {number, by, flags | IPC_NOWAIT};
    return semop(set, &it, 1);
}
static int are(int one, int two, int three) {
    unsigned short values[3];
    CHECK(semctl(set, 0, GETALL, values) == 0);
    if (values[0] == one && values[1] == two && values[2] == three) return 1;
    printf("they are %d %d %d\n", values[0], values[1], values[2]);
    return 0;
}
static void *thread(void *unused) {
    (void)unused;
    CHECK(change(0, -1, SEM_UNDO) == 0);
    return NULL;
}
/* Does something, says so, and ends when it is told to. */
static pid_t begin(void (*work)(void), int *end) {
    int ready[2], go[2];
    char byte;
    CHECK(pipe(ready) == 0 && pipe(go) == 0);
    pid_t pid = fork();
    if (!pid) {
        close(go[1]);
        work();
        CHECK(write(ready[1], "", 1) == 1);
        CHECK(read(go[0], &byte, 1) == 0);
        _exit(failed);
    }
    close(go[0]);
    close(ready[1]);
    CHECK(read(ready[0], &byte, 1) == 1);
    *end = go[1];
    return pid;
}
static void finish(pid_t pid, int end) {
    int status = -1;
    close(end);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}
static void one_works(void) {
    CHECK(change(0, -2, SEM_UNDO) == 0);
    CHECK(change(1, 4, SEM_UNDO) == 0);
    CHECK(change(2, 2000, SEM_UNDO) == 0);
    CHECK(change(2, -3000, SEM_UNDO) == 0);
}
static void many_work(void) {
    static pthread_t threads[3];
    for (int at = 0; at < 2; at++) {
        CHECK(pthread_create(&threads[at], NULL, thread, NULL) == 0);
        CHECK(pthread_join(threads[at], NULL) == 0);
    }
    CHECK(pthread_create(&threads[2], NULL, (void *(*)(void *))(void *)pause, NULL) == 0);
}
static void none_works(void) {}

int main(int count, char **arguments) {
    setvbuf(stdout, NULL, _IONBF, 0);
    if (count < 3) return 2;
    int one, many, none;
    unsigned short values[3] = {9, 0, 30000};
    CHECK((set = semget(IPC_PRIVATE, 3, 0600)) >= 0);
    CHECK(semctl(set, 0, SETALL, values) == 0);
    pid_t none_pid = begin(none_works, &none);
    pid_t one_pid = begin(one_works, &one);
    fcntl(one, F_SETFD, FD_CLOEXEC);
    pid_t many_pid = begin(many_work, &many);
    /* By somebody else, for good. */
    CHECK(change(1, -3, 0) == 0);
    int last = semctl(set, 0, GETPID), used = semctl(set, 1, GETPID);
    struct timespec moment = {0, 1000000};
    close(open(arguments[1], O_CREAT | O_WRONLY, 0600));
    while (access(arguments[2], F_OK)) nanosleep(&moment, NULL);

    CHECK(are(5, 1, 29000));
    CHECK(count < 4 || (semctl(set, 0, GETPID) == last && semctl(set, 1, GETPID) == used));
    finish(many_pid, many);
    CHECK(are(7, 1, 29000));
    /* Not below zero. */
    finish(one_pid, one);
    CHECK(are(9, 0, 30000));
    finish(none_pid, none);
    CHECK(are(9, 0, 30000));
    CHECK(semctl(set, 0, IPC_RMID) == 0);
    puts(failed ? "failed" : "all so");
    return failed;
}
