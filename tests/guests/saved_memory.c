/* Memory of several kinds, checked before and after a save. Says `up` by making the file that its first
 * argument names; goes on once the one that its second argument names is there. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <errno.h>

enum { PAGE = 4096, ZEROS = 4 << 20 };
/* What is not zero where all else is: the first and the last byte of a page, one in it, and the last of all. */
static const int marks[] = {5 * PAGE, 9 * PAGE - 1, 300 * PAGE + 128, ZEROS - 1};
static int wrong;

static void check(int holds, const char *what) {
    if (!holds) {
        printf("not so: %s\n", what);
        wrong = 1;
    }
}

static char *map(size_t length, int protection, int flags, int fd, off_t offset) {
    char *at = mmap(NULL, length, protection, flags, fd, offset);
    return at == MAP_FAILED ? NULL : at;
}

/* Whether the kernel can read there: a guard or missing rights say no. */
static int readable(const char *at) {
    int fds[2];
    if (pipe(fds) != 0)
        return -1;
    int done = write(fds[1], at, 1) == 1;
    close(fds[0]);
    close(fds[1]);
    return done;
}

static int has_marks_alone(const char *zeros) {
    int found = 0;
    for (int at = 0; at < ZEROS; at++) {
        if (zeros[at] == 0)
            continue;
        if (found == 4 || at != marks[found] || zeros[at] != 1)
            return 0;
        found++;
    }
    return found == 4;
}

static int load_filter(void) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 77),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog all = {4, program};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &all);
}

int main(int count, char **names) {
    if (count < 3)
        return 2;
    int both = PROT_READ | PROT_WRITE, private = MAP_PRIVATE | MAP_ANONYMOUS;
    char *hidden = map(PAGE, both, private, -1, 0);
    char *guarded = map(4 * PAGE, both, private, -1, 0);
    char *sparse = map(64ul << 30, both, private | MAP_NORESERVE, -1, 0);
    char *reserved = map(200ul << 30, PROT_NONE, private, -1, 0);
    char *zeros = map(ZEROS, both, private, -1, 0);
    char *shared = map(PAGE, both, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int memory = memfd_create("memory", 0);
    if (ftruncate(memory, 2 * PAGE) != 0)
        return 2;
    char *half = map(PAGE, both, MAP_SHARED, memory, PAGE);
    char *whole = map(2 * PAGE, both, MAP_SHARED, memory, 0);
    char *own = map(2 * PAGE, both, MAP_PRIVATE, memory, 0);
    close(memory);
    int file = open("/tmp/removed", O_RDWR | O_CREAT, 0600);
    if (ftruncate(file, 3 * PAGE) != 0 || pwrite(file, "file", 4, 2 * PAGE) != 4)
        return 2;
    char *removed = map(3 * PAGE, both, MAP_PRIVATE, file, 0);
    close(file);
    unlink("/tmp/removed");
    if (!hidden || !guarded || !sparse || !zeros || !shared || !half || !whole || !own || !removed)
        return 2;
    strcpy(hidden, "hidden");
    mprotect(hidden, PAGE, PROT_NONE);
    memset(guarded, 3, 4 * PAGE);
    int guards = madvise(guarded + PAGE, PAGE, 102 /* MADV_GUARD_INSTALL */) == 0;
    sparse[40ul << 30] = 5;
    memset(zeros, 0, ZEROS);
    for (int i = 0; i < 4; i++)
        zeros[marks[i]] = 1;
    strcpy(whole, "whole");
    strcpy(half, "half");
    strcpy(own + PAGE, "own");
    strcpy(removed + PAGE, "changed");
    check(load_filter() == 0, "a filter can be loaded");
    int pipes[2];
    if (pipe(pipes) != 0)
        return 2;
    pid_t child = fork();
    if (child == 0) {
        char byte;
        if (read(pipes[0], &byte, 1) != 1 || strcmp(shared, "parent") != 0)
            _exit(1);
        strcpy(shared, "child");
        strcpy(half + 100, "child");
        _exit(0);
    }
    close(open(names[1], O_WRONLY | O_CREAT, 0600));
    while (access(names[2], F_OK) != 0)
        usleep(10000);
    strcpy(shared, "parent");
    check(write(pipes[1], "x", 1) == 1, "the child is told");
    int status = -1;
    wait(&status);
    check(status == 0, "the child saw what its parent wrote");
    check(strcmp(shared, "child") == 0, "anonymous memory is shared");
    check(strcmp(whole + PAGE + 100, "child") == 0, "a memfd is mapped twice");
    check(strcmp(whole, "whole") == 0 && strcmp(half, "half") == 0, "a memfd without descriptor");
    check(strcmp(own, "whole") == 0 && strcmp(own + PAGE, "own") == 0, "private over a memfd");
    check(strcmp(removed + PAGE, "changed") == 0, "a changed page of a removed file");
    check(strcmp(removed + 2 * PAGE, "file") == 0, "an unchanged page of a removed file");
    check(!readable(hidden), "no rights");
    mprotect(hidden, PAGE, PROT_READ);
    check(strcmp(hidden, "hidden") == 0, "content without rights");
    check(!guards || !readable(guarded + PAGE), "a guard");
    check(guarded[0] == 3 && guarded[2 * PAGE] == 3, "beside a guard");
    check(sparse[40ul << 30] == 5 && sparse[PAGE] == 0, "sparse memory");
    check(has_marks_alone(zeros), "written zeros with something between them");
    check(!reserved || !readable(reserved), "reserved memory");
    errno = 0;
    check(syscall(SYS_getppid) == -1 && errno == 77, "the filter holds");
    puts(wrong ? "wrong" : "right");
    return wrong;
}
