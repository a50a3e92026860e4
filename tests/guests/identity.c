// cc: -pthread
// The rules of credentials(7) and capabilities(7): prints what each call says and who the caller is then.
// Run by root, natively and inside. Of capabilities only those are shown that root has in both.
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define BIT(capability) (1ull << (capability))
static const uint64_t SHOWN = BIT(CAP_CHOWN) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_FOWNER) | BIT(CAP_FSETID) |
                              BIT(CAP_KILL) | BIT(CAP_SETGID) | BIT(CAP_SETUID) | BIT(CAP_SETPCAP) |
                              BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_SYS_CHROOT) | BIT(CAP_MKNOD) | BIT(CAP_SETFCAP);

static gid_t *volatile nowhere = (gid_t *)8;
static volatile int negative = -1;

struct sets {
    uint64_t effective, permitted, inheritable;
};

static int get(pid_t pid, struct sets *sets) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, pid};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) != 0)
        return -1;
    sets->effective = data[0].effective | (uint64_t)data[1].effective << 32;
    sets->permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
    sets->inheritable = data[0].inheritable | (uint64_t)data[1].inheritable << 32;
    return 0;
}

static int set(pid_t pid, struct sets sets) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, pid};
    struct __user_cap_data_struct data[2] = {
        {sets.effective, sets.permitted, sets.inheritable},
        {sets.effective >> 32, sets.permitted >> 32, sets.inheritable >> 32},
    };
    return syscall(SYS_capset, &header, data);
}

// All in one line: threads print, too.
static void show(const char *what) {
    uid_t r, e, s;
    gid_t rg, eg, sg, groups[16];
    struct sets sets = {0};
    char list[128] = "";
    getresuid(&r, &e, &s);
    getresgid(&rg, &eg, &sg);
    int count = getgroups(16, groups);
    for (int i = 0; i < count; i++)
        sprintf(list + strlen(list), " %u", groups[i]);
    get(0, &sets);
    if (getuid() != r || geteuid() != e || getgid() != rg || getegid() != eg)
        printf("calls disagree about ids\n");
    printf("  %s: uid %u %u %u %d gid %u %u %u %d groups%s caps %llx %llx %llx\n", what, r, e, s, setfsuid(-1), rg,
           eg, sg, setfsgid(-1), list, (unsigned long long)(sets.permitted & SHOWN),
           (unsigned long long)(sets.effective & SHOWN), (unsigned long long)(sets.inheritable & SHOWN));
    fflush(stdout);
}

#define TRY(call)                                                                                                     \
    do {                                                                                                              \
        errno = 0;                                                                                                    \
        long result = (call);                                                                                         \
        printf("  %s = %ld%s%s\n", #call, result, result < 0 ? " " : "", result < 0 ? strerrorname_np(errno) : "");                           \
        fflush(stdout);                                                                                               \
    } while (0)

static void again(const char *what) {
    fflush(stdout);
    execl("/proc/self/exe", "identity", what, NULL);
    printf("cannot execute: %s\n", strerror(errno));
    exit(1);
}

static void drop(void) {
    gid_t groups[] = {7, 3, 5};
    TRY(setgroups(3, groups));
    TRY(setresgid(100, 100, 100));
    TRY(setresuid(100, 100, 100));
    show("dropped");
    TRY(setuid(0));
    TRY(setuid(100));
    TRY(setreuid(0, 0));
    TRY(setresuid(-1, 0, -1));
    TRY(setgid(0));
    TRY(setregid(-1, 7));
    TRY(setresgid(0, 0, 0));
    TRY(setgroups(0, NULL));
    TRY(setfsuid(0));
    TRY(setfsgid(7));
    TRY(chroot("/"));
    TRY(prctl(PR_CAPBSET_DROP, CAP_CHOWN));
    TRY(set(0, (struct sets){0, BIT(CAP_CHOWN), 0}));
    show("still");
    again("executed");
}

static void one(void) {
    TRY(setgid(5));
    TRY(setuid(6));
    show("all four");
    TRY(setuid(-1));
    TRY(setgid(-1));
}

static void back(void) {
    TRY(seteuid(100));
    TRY(setegid(100));
    show("acts as another");
    TRY(chroot("/"));
    TRY(setuid(200));
    TRY(seteuid(0));
    TRY(setegid(100));
    show("root again");
    TRY(chroot("/"));
}

static void two(void) {
    TRY(setregid(30, 40));
    TRY(setreuid(10, 20));
    show("two");
    TRY(setreuid(20, 10));
    TRY(setregid(-1, 30));
    show("exchanged");
    TRY(setreuid(-1, 30));
    TRY(setreuid(-1, -1));
    again("executed");
}

static void saved(void) {
    TRY(setresuid(-1, 100, 0));
    show("saved");
    again("executed");
}

static void files(void) {
    TRY(setfsuid(100));
    TRY(setfsgid(100));
    show("files of another");
    TRY(setfsuid(-1));
    TRY(setresuid(-1, -1, -1));
    show("unchanged");
    TRY(setfsuid(0));
    show("own files");
    TRY(setfsuid(100));
    TRY(setresuid(-1, 0, -1));
    show("reset");
}

static void keep(void) {
    TRY(prctl(PR_GET_KEEPCAPS));
    TRY(prctl(PR_SET_KEEPCAPS, 2));
    TRY(prctl(PR_SET_KEEPCAPS, 1));
    TRY(prctl(PR_GET_KEEPCAPS));
    TRY(setuid(100));
    show("kept");
    uint64_t two = BIT(CAP_CHOWN) | BIT(CAP_SETUID);
    TRY(set(0, (struct sets){two, two, two}));
    show("fewer");
    TRY(set(0, (struct sets){two | BIT(CAP_KILL), two, two}));
    TRY(set(0, (struct sets){two, two | BIT(CAP_KILL), two}));
    TRY(set(1, (struct sets){two, two, two}));
    TRY(set(getpid(), (struct sets){two, two, two}));
    TRY(setuid(200));
    show("by capability");
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_CHOWN, 0, 0));
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 99, 0, 0));
    TRY(prctl(PR_CAP_AMBIENT, 9, CAP_CHOWN, 0, 0));
    again("ambient");
}

static void bounding(void) {
    TRY(prctl(PR_CAPBSET_READ, CAP_CHOWN));
    TRY(prctl(PR_CAPBSET_DROP, CAP_CHOWN));
    TRY(prctl(PR_CAPBSET_DROP, 99));
    TRY(prctl(PR_CAPBSET_READ, CAP_CHOWN));
    TRY(prctl(PR_CAPBSET_READ, 99));
    show("bounded");
    again("executed");
}

static void bits(void) {
    TRY(prctl(PR_GET_SECUREBITS));
    TRY(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED));
    TRY(prctl(PR_GET_SECUREBITS));
    TRY(prctl(PR_SET_SECUREBITS, 0));
    TRY(setuid(100));
    show("no fixup");
}

static void less(void) {
    struct sets sets;
    get(0, &sets);
    sets.effective &= ~BIT(CAP_SETUID);
    TRY(set(0, sets));
    TRY(setuid(100));
    TRY(setgid(100));
    show("no right to it");
}

static void groups(void) {
    gid_t list[4] = {9, 8, 8, 1};
    TRY(setgroups(4, list));
    TRY(getgroups(0, NULL));
    TRY(getgroups(3, list));
    TRY(getgroups(negative, list));
    TRY(setgroups(65537, list));
    TRY(setgroups(-1, list));
    TRY(setgroups(1, nowhere));
    TRY(setgroups(1, (gid_t[]){-1}));
    show("groups");
    TRY(getgroups(4, nowhere));
    TRY(syscall(SYS_getresuid, 8, 8, 8));
}

static void versions(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_1, 0};
    struct __user_cap_data_struct data[2] = {{1, 1, 1}, {1, 1, 1}};
    TRY(syscall(SYS_capget, &header, data));
    printf("  %x\n", data[1].effective);
    header.version = 5;
    TRY(syscall(SYS_capget, &header, data));
    printf("  %x\n", header.version);
    header.version = 5;
    TRY(syscall(SYS_capget, &header, NULL));
    header.version = 5;
    TRY(syscall(SYS_capset, &header, data));
    struct sets sets;
    TRY(get(getpid(), &sets));
    TRY(get(-1, &sets));
    TRY(get(0x3fffffff, &sets));
    TRY(syscall(SYS_capget, 8, data));
}

// What is made by a process that was another by then is that, also when nobody of its line is left.
static void orphan(void) {
    int done[2];
    if (pipe(done) != 0)
        exit(1);
    TRY(setgid(50));
    TRY(setuid(60));
    if (fork() == 0) {
        pid_t parent = getpid();
        if (fork() == 0) {
            while (getppid() == parent)
                usleep(1000);
            show("orphan");
            exit(0);
        }
        exit(0);
    }
    close(done[1]);
    wait(NULL);
    // The orphan holds the other end.
    char byte;
    (void)!read(done[0], &byte, 1);
}

static pthread_barrier_t barrier;

static void *other(void *unused) {
    (void)unused;
    TRY(syscall(SYS_setresgid, 70, 70, 70));
    show("thread");
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    show("thread follows the others");
    pthread_barrier_wait(&barrier);
    return NULL;
}

static void *later(void *what) {
    show(what);
    return NULL;
}

static void threads(void) {
    pthread_t thread, second;
    pthread_barrier_init(&barrier, NULL, 2);
    pthread_create(&thread, NULL, other, NULL);
    pthread_barrier_wait(&barrier);
    show("main thread");
    pthread_create(&second, NULL, later, "a thread of the main thread");
    pthread_join(second, NULL);
    if (fork() == 0) {
        show("child of the main thread");
        exit(0);
    }
    wait(NULL);
    TRY(setresgid(80, 80, 80));
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    pthread_join(thread, NULL);
    TRY(setuid(90));
    show("all");
    pthread_create(&second, NULL, later, "one more");
    pthread_join(second, NULL);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        show(argv[1]);
        TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_CHOWN, 0, 0));
        TRY(setuid(0));
        return 0;
    }
    const struct {
        const char *name;
        void (*run)(void);
    } all[] = {
        {"drop", drop},         {"one", one},   {"back", back}, {"two", two},       {"saved", saved},
        {"files", files},       {"keep", keep}, {"bits", bits}, {"less", less},     {"bounding", bounding},
        {"groups", groups},     {"versions", versions},         {"orphan", orphan}, {"threads", threads},
    };
    if (setgroups(1, (gid_t[]){0}) != 0)
        perror("setgroups");
    show("begin");
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        printf("%s\n", all[i].name);
        fflush(stdout);
        if (fork() == 0) {
            all[i].run();
            exit(0);
        }
        wait(NULL);
    }
    show("end");
    return 0;
}
