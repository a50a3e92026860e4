/* Memory of which much may still lie in an image: whatever a program does with it, it is as plain memory is.
 * Makes `up`; goes on once `go` is there. `mapped` then says how many mappings are the image's. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };
#define MIB (1ul << 20)
static int wrong;

static void check(int holds, const char *what) {
    if (!holds) {
        printf("not so: %s (errno %d)\n", what, errno);
        wrong = 1;
    }
}

static uint64_t word(unsigned tag, size_t page, size_t at) {
    uint64_t x = (uint64_t)tag << 40 ^ (uint64_t)page << 12 ^ at;
    x *= 0x9e3779b97f4a7c15;
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9 | 1;
}

static void fill(uint64_t *at, size_t length, unsigned tag) {
    for (size_t page = 0; page < length / PAGE; page++)
        for (size_t i = 0; i < WORDS; i++)
            at[page * WORDS + i] = word(tag, page, i);
}

/* Whether pages `from` to `to` are as they were filled, or zero. */
static int is(const uint64_t *at, size_t from, size_t to, unsigned tag) {
    for (size_t page = from; page < to; page++)
        for (size_t i = 0; i < WORDS; i++)
            if (at[page * WORDS + i] != (tag ? word(tag, page, i) : 0))
                return 0;
    return 1;
}

static uint64_t *region(size_t length, unsigned tag) {
    uint64_t *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        exit(3);
    fill(at, length, tag);
    /* A gap, so that no region joins another. */
    mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at;
}

static int images(void) {
    char line[4400];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        count += strstr(line, "/image") != NULL;
    if (maps)
        fclose(maps);
    return count;
}

static uint64_t *watched;
static atomic_int done;
static atomic_int astray;

static void *watch(void *nothing) {
    while (!done)
        if (!is(watched, 0, 512, 7))
            astray = 1;
    return nothing;
}

static int in_child(int (*test)(uint64_t *), uint64_t *at) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(test(at) ? 0 : 1);
    int status = -1;
    waitpid(child, &status, 0);
    return status == 0;
}

static int child_gives_away(uint64_t *at) {
    if (!is(at, 0, 1024, 5))
        return 0;
    at[0] = 1;
    return madvise((char *)at + PAGE, MIB, MADV_DONTNEED) == 0 && is(at, 1, 257, 0) && at[0] == 1 &&
           is(at, 257, 1024, 5);
}

/* From now on mmap(2) is denied. */
static int deny_mmap(void) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog all = {4, program};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &all);
}

/* Calls that the kernel refuses, about the memory at `at`, and what it says. */
static void refused(uint64_t *at, int answers[5]) {
    answers[0] = madvise((char *)at + 1, PAGE, MADV_DONTNEED) ? errno : 0;
    mlock(at, 4 * PAGE);
    answers[1] = madvise(at, 4 * PAGE, MADV_DONTNEED) ? errno : 0;
    munlock(at, 4 * PAGE);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    int other = syscall(SYS_pidfd_open, child, 0);
    struct iovec part = {at, 4 * PAGE};
    answers[2] = syscall(SYS_process_madvise, other, &part, 1, MADV_DONTNEED, 0) < 0 ? errno : 0;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    close(other);
    answers[4] = madvise(at, -(size_t)at - PAGE / 2, MADV_DONTNEED) ? errno : 0;
    answers[3] = mremap((char *)at + 1, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED ? errno : 0;
}

static int is_wiped(uint64_t *at) { return is(at, 0, 512, 0); }

int main(void) {
    uint64_t *given = region(24 * MIB, 1), *freed = region(4 * MIB, 2), *grown = region(12 * MIB, 3);
    uint64_t *forked = region(8 * MIB, 5), *io = region(2 * MIB, 6), *named = region(2 * MIB, 8);
    uint64_t *wiped = region(2 * MIB, 9), *kept = region(48 * MIB, 10), *many = region(8 * MIB, 11);
    uint64_t *twice = region(8 * MIB, 14), *sealed = region(2 * MIB, 15);
    watched = region(2 * MIB, 7);
    size_t chunk = 20 * MIB;
    uint64_t *heap = malloc(chunk), *top = sbrk(0);
    fill(heap, chunk, 12);
    sbrk(4 * MIB);
    uint64_t *brk = (uint64_t *)(((uintptr_t)top + PAGE - 1) & -(uintptr_t)PAGE);
    fill(brk, 3 * MIB, 13);
    /* Holes: what is zero is not in the image. */
    memset(grown + 700 * WORDS, 0, 3 * PAGE);
    memset(grown + 5 * WORDS, 0, PAGE);

    fclose(fopen("up", "w"));
    while (access("go", F_OK) != 0)
        usleep(2000);
    FILE *mapped = fopen("mapped", "w");
    fprintf(mapped, "%d\n", images());
    fclose(mapped);

    pthread_t thread;
    pthread_create(&thread, NULL, watch, NULL);
    /* What is given away is zero, and nothing beside it. */
    check(madvise((char *)given + 3 * MIB, 5 * MIB, MADV_DONTNEED) == 0, "pages are given away");
    check(is(given, 0, 768, 1) && is(given, 768, 2048, 0) && is(given, 2048, 6144, 1), "they are zero");
    check(madvise(freed, 4 * MIB, MADV_FREE) == 0, "pages may be freed");
    fill(freed, MIB, 20);
    check(is(freed, 0, 256, 20), "what is written then stays");
    /* Growing and moving. */
    grown = mremap(grown, 12 * MIB, 40 * MIB, MREMAP_MAYMOVE);
    check(grown != MAP_FAILED, "memory grows");
    if (grown != MAP_FAILED) {
        check(is(grown, 0, 5, 3) && is(grown, 5, 6, 0) && is(grown, 6, 700, 3), "its beginning");
        check(is(grown, 700, 703, 0) && is(grown, 703, 3072, 3), "its end");
        check(is(grown, 3072, 10240, 0), "what it has grown by");
    }
    /* Part of a mapping, of which another part was made plain before. */
    check(madvise((char *)twice + MIB, PAGE, MADV_DONTNEED) == 0, "one page is given away");
    uint64_t *moved = mremap(twice, 4 * MIB, 9 * MIB, MREMAP_MAYMOVE);
    check(moved != MAP_FAILED && is(moved, 0, 256, 14) && is(moved, 256, 257, 0) &&
              is(moved, 257, 1024, 14) && is(moved, 1024, 2304, 0),
          "a part is moved");
    heap = realloc(heap, 60 * MIB);
    check(heap && is(heap, 0, chunk / PAGE, 12), "a chunk of the heap grows");
    check(is(brk, 0, 768, 13), "the heap");
    check(sbrk(-3 * MIB) != (void *)-1 && sbrk(3 * MIB) != (void *)-1, "the heap shrinks and grows");
    check(is(brk, 300, 700, 0), "what it has grown by is zero");
    /* A child has its own. */
    check(in_child(child_gives_away, forked), "a child gives away");
    check(is(forked, 0, 2048, 5), "its parent has it still");
    check(madvise(wiped, 2 * MIB, MADV_WIPEONFORK) == 0, "memory is to be wiped at a fork");
    check(in_child(is_wiped, wiped) && is(wiped, 0, 512, 9), "it is, in the child");
    /* The kernel reads and writes there. */
    int fds[2];
    check(pipe(fds) == 0 && write(fds[1], io, 3 * PAGE) == 3 * PAGE, "it is written from");
    check(read(fds[0], (char *)io + MIB, 3 * PAGE) == 3 * PAGE, "it is read to");
    check(is(io, 0, 256, 6) && memcmp(io, (char *)io + MIB, 3 * PAGE) == 0 && is(io, 259, 512, 6), "both");
    /* As new memory answers. */
    uint64_t *fresh = region(MIB, 0);
    for (int i = 0; i < 2; i++) {
        uint64_t *at = i ? named : fresh;
        static int answers[2][3];
        struct iovec part = {many, MIB};
        answers[i][0] = prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, MIB, "name") ? errno : 0;
        int self = syscall(SYS_pidfd_open, getpid(), 0);
        part.iov_base = i ? (void *)many : fresh;
        answers[i][1] = syscall(SYS_process_madvise, self, &part, 1, MADV_DONTNEED, 0) < 0 ? errno : 0;
        answers[i][2] = mprotect(at, MIB, PROT_READ | PROT_EXEC) ? errno : 0;
        close(self);
        if (i) {
            check(memcmp(answers[0], answers[1], sizeof answers[0]) == 0, "answers are alike");
            check(is(many, 0, 256, answers[1][1] ? 11 : 0) && is(many, 256, 2048, 11), "given away by two");
        }
    }
    check(is(named, 0, 512, 8), "what was named");
    uint64_t *new = region(MIB, 21);
    int expected[5], answers[5];
    refused(new, expected);
    refused(kept, answers);
    check(memcmp(expected, answers, sizeof answers) == 0, "refusals are alike");
    check(is(kept, 0, 256, 10) && is(new, 0, 256, 21), "what was refused has changed nothing");
    long seal = syscall(462, new, MIB, 0) ? errno : 0;
    check((syscall(462, sealed, MIB, 0) ? errno : 0) == seal, "seals are alike");
    check(is(sealed, 0, 512, 15), "what is sealed");
    done = 1;
    pthread_join(thread, NULL);
    /* Who is not to map memory cannot have it mapped anew. (Nothing was done near there.) */
    int is_mapped = images() > 0;
    check(deny_mmap() == 0, "a filter");
    int given_up = madvise((char *)kept + 24 * MIB, MIB, MADV_DONTNEED) ? errno : 0;
    check(given_up == (is_mapped ? EAGAIN : 0), "it is told");
    check(is(kept, 6144, 6400, is_mapped ? 10 : 0), "and keeps what it has");
    if (!is_mapped)
        fill(kept, 48 * MIB, 10);
    check(!astray && is(watched, 0, 512, 7), "another thread always saw the same");
    check(is(kept, 0, 12288, 10), "what nothing was done with");
    puts(wrong ? "something is not as it was" : "all as it was");
    return wrong;
}
