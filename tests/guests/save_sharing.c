// cc: -pthread
/*
 * Processes and threads that share what others do not, across a save.
 *
 *     save_sharing READY GO    touches READY; goes on once GO exists, after the save
 *
 * Who shares what with whom is asked before and after (kcmp(2)), and tried after: what one of them does is seen by
 * those that share it, and by nobody else.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int failed;
#define CHECK(what) do { if (!(what)) { failed = 1; printf("line %d: not so: %s (%s)\n", __LINE__, #what, strerror(errno)); } } while (0)

enum { LEAVE = 1, MAKE, WRITE, OPEN, CLOSE, GO_AWAY, ACT, UNDO, END };
enum { MOST = 24 };

/* What each is told to do, in memory that all share. */
struct task {
    int word;           /* a number that changes when there is something to do, and when it is done */
    int deed;
    unsigned long argument;
    unsigned long result;
    int tid;
    int maker;
    unsigned long flags;
};
static struct task *tasks;
static int count;
static int set;
/* In memory that only some share. */
static volatile unsigned long written;

static void wait_while(int *word, int value) {
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value) syscall(SYS_futex, word, FUTEX_WAIT, value, 0, 0, 0);
}
static void say(int *word) {
    __atomic_add_fetch(word, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, word, FUTEX_WAKE, 1000, 0, 0, 0);
}
static void handler(int signal) { (void)signal; }

static int be(void *number);
static void *stack(void) {
    char *low = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return low + 65536;
}
static void *thread(void *number) {
    be(number);
    return NULL;
}
static unsigned long act(int deed, unsigned long argument) {
    struct sigaction action = {.sa_handler = handler};
    switch (deed) {
    case LEAVE: return unshare(argument);
    case MAKE: {
        struct task *made = &tasks[argument];
        if (made->flags & CLONE_THREAD) {
            pthread_t id;
            return pthread_create(&id, NULL, thread, (void *)argument);
        }
        return clone(be, stack(), made->flags, (void *)argument) < 0;
    }
    case WRITE: written = argument; return 0;
    case OPEN: return dup2(0, argument) < 0;
    case CLOSE: return close(argument);
    case GO_AWAY: umask(argument); return chdir(argument == 077 ? "/" : "/usr");
    case ACT:
        if (argument) action.sa_handler = SIG_IGN;
        return sigaction(SIGUSR2, &action, NULL);
    case UNDO: {
        struct sembuf it = {0, -(short)argument, SEM_UNDO | IPC_NOWAIT};
        return semop(set, &it, 1);
    }
    }
    return -1;
}
static int be(void *given) {
    long number = (long)given;
    struct task *own = &tasks[number];
    own->tid = syscall(SYS_gettid);
    for (int word = 0;; word += 2) {
        say(&own->word);
        wait_while(&own->word, word + 1);
        if (own->deed == END) {
            if (own->flags & CLONE_THREAD) return 0;
            syscall(SYS_exit, 0);
        }
        own->result = act(own->deed, own->argument);
    }
}
/* Has a task do something, which is done when this returns. */
static unsigned long has(int number, int deed, unsigned long argument) {
    struct task *it = &tasks[number];
    if (number == 0) return act(deed, argument);
    int word = it->word;
    it->deed = deed;
    it->argument = argument;
    say(&it->word);
    if (deed == END) return 0;
    wait_while(&it->word, word + 1);
    return it->result;
}
static int make(int maker, unsigned long flags) {
    int number = count++;
    tasks[number].maker = maker;
    tasks[number].flags = flags;
    CHECK(has(maker, MAKE, number) == 0);
    wait_while(&tasks[number].word, 0);
    return number;
}

static const int kinds[] = {KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_SYSVSEM};
static int shares(int kind, int one, int other) {
    long order = syscall(SYS_kcmp, tasks[one].tid, tasks[other].tid, kinds[kind], 0, 0);
    CHECK(order >= 0);
    return order == 0;
}
static unsigned status(int task, const char *field, int base) {
    char path[64], line[256];
    unsigned value = -1;
    snprintf(path, sizeof path, "/proc/%d/status", tasks[task].tid);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, field, strlen(field))) value = strtoul(line + strlen(field), NULL, base);
    if (file) fclose(file);
    return value;
}
/* What one does is seen by those that share it. */
static void try(int one) {
    char path[64], link[64] = "";
    has(one, WRITE, 1000 + one);
    CHECK(has(one, OPEN, 200) == 0);
    CHECK(has(one, GO_AWAY, 077) == 0);
    CHECK(has(one, ACT, 1) == 0);
    for (int other = 0; other < count; other++) {
        struct stat found;
        snprintf(path, sizeof path, "/proc/%d/fd/200", tasks[other].tid);
        CHECK((stat(path, &found) == 0) == shares(1, one, other));
        snprintf(path, sizeof path, "/proc/%d/cwd", tasks[other].tid);
        memset(link, 0, sizeof link);
        CHECK(readlink(path, link, sizeof link - 1) > 0);
        int here = !strcmp(link, "/");
        CHECK(here == shares(2, one, other));
        CHECK((status(other, "Umask:", 8) == 077) == shares(2, one, other));
        CHECK((status(other, "SigIgn:", 16) >> (SIGUSR2 - 1) & 1) == (unsigned)shares(3, one, other));
        if (failed) { printf("task %d did, and this is task %d\n", one, other); return; }
    }
    /* Who shares memory answers for it: it is in the one variable of the space. */
    for (int other = 0; other < count; other++) {
        if (!shares(0, one, other)) continue;
        snprintf(path, sizeof path, "/proc/%d/mem", tasks[other].tid);
        unsigned long value = 0;
        int fd = open(path, O_RDONLY);
        CHECK(fd >= 0 && pread(fd, &value, sizeof value, (off_t)&written) == sizeof value);
        close(fd);
        CHECK(value == 1000ul + one);
    }
    /* Back again. */
    CHECK(has(one, GO_AWAY, 022) == 0);
    CHECK(has(one, ACT, 0) == 0);
    CHECK(has(one, CLOSE, 200) == 0);
}

int main(int words, char **arguments) {
    if (words < 3) return 2;
    setvbuf(stdout, NULL, _IONBF, 0);
    tasks = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(tasks != MAP_FAILED);
    signal(SIGUSR1, handler);
    set = semget(IPC_PRIVATE, 1, 0600);
    CHECK(set >= 0 && semctl(set, 0, SETVAL, 100) == 0);
    char home[4096];
    CHECK(getcwd(home, sizeof home));
    tasks[0].tid = getpid();
    count = 1;

    const unsigned long all = CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND | CLONE_SYSVSEM;
    const unsigned long usual = all | CLONE_THREAD;
    int like = make(0, all | SIGCHLD);
    make(0, CLONE_VM | SIGCHLD);
    int table = make(0, CLONE_FILES | SIGCHLD);
    make(0, CLONE_FS | SIGUSR1);
    int undoes = make(0, CLONE_SYSVSEM | SIGCHLD);
    /* One that leaves what it has passed on. */
    make(table, CLONE_FILES | CLONE_FS | SIGCHLD);
    CHECK(has(table, LEAVE, CLONE_FILES) == 0);
    /* Siblings that share with each other alone, one made by the other, and a child of those. */
    int alone = make(0, SIGCHLD);
    make(alone, CLONE_PARENT | CLONE_VM | CLONE_FS | CLONE_SIGHAND);
    make(alone, CLONE_VM | CLONE_FILES | SIGCHLD);
    /* Threads: one as usual, one that has left, one that goes with that one, and a process that does so, too. */
    make(0, usual);
    int left = make(0, usual);
    CHECK(has(left, LEAVE, CLONE_FILES | CLONE_FS) == 0);
    make(left, usual);
    make(left, CLONE_FILES | SIGCHLD);
    /* A thread of a process that shares memory with this one. */
    make(like, usual);
    /* The adjustments of those that share them are one. */
    CHECK(has(undoes, UNDO, 3) == 0);
    CHECK(act(UNDO, 4) == 0);

    int before[5][MOST][MOST];
    for (int kind = 0; kind < 5; kind++)
        for (int one = 0; one < count; one++)
            for (int other = 0; other < count; other++) before[kind][one][other] = shares(kind, one, other);

    close(open(arguments[1], O_CREAT | O_WRONLY, 0600));
    char go[8192];
    snprintf(go, sizeof go, "%s/%s", home, arguments[2]);
    struct timespec pause = {0, 2000000};
    while (access(go, F_OK) != 0) nanosleep(&pause, NULL);

    for (int kind = 0; kind < 5; kind++)
        for (int one = 0; one < count; one++)
            for (int other = 0; other < count; other++)
                if (before[kind][one][other] != shares(kind, one, other)) {
                    failed = 1;
                    printf("kind %d: %d and %d: %d before\n", kind, one, other, before[kind][one][other]);
                }
    for (int one = 0; one < count; one++) {
        try(one);
        if (failed) break;
    }
    /* The ends: only with the last that shares them are adjustments undone. */
    CHECK(semctl(set, 0, GETVAL) == 93);
    int children = 0;
    for (int one = count - 1; one > 0; one--) {
        has(one, END, 0);
        int is_own = !(tasks[one].flags & CLONE_THREAD)
            && (tasks[one].maker == 0 || tasks[one].flags & CLONE_PARENT
                || tasks[tasks[one].maker].flags & CLONE_THREAD);
        children += is_own;
    }
    for (int status; children; children--) CHECK(waitpid(-1, &status, __WALL) > 0 && status == 0);
    CHECK(semctl(set, 0, GETVAL) == 93);
    CHECK(semctl(set, 0, IPC_RMID) == 0);
    CHECK(!failed);
    if (!failed) printf("all so\n");
    return failed;
}
