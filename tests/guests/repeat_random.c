// cc: -pthread
// Everything random that a program meets, a line each, and that the calls behave as the kernel's do.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int initialised = 1;

#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "line %d: %s (errno %d)\n", __LINE__, #what, errno);                   \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static void print(const char *what, const void *bytes, size_t count)
{
    printf("%s", what);
    for (size_t index = 0; index < count; index++)
        printf(" %02x", ((const unsigned char *)bytes)[index]);
    printf("\n");
}

static void draw(const char *what)
{
    unsigned char bytes[16];
    CHECK(getrandom(bytes, sizeof bytes, 0) == sizeof bytes);
    print(what, bytes, sizeof bytes);
}

static void *thread(void *name)
{
    draw(name);
    return NULL;
}

static void calls(void)
{
    unsigned char bytes[300], others[300];
    CHECK(getrandom(bytes, sizeof bytes, GRND_NONBLOCK) == sizeof bytes);
    CHECK(getrandom(others, sizeof others, GRND_RANDOM) == sizeof others);
    CHECK(memcmp(bytes, others, sizeof bytes));
    print("getrandom", bytes, 16);
    CHECK(getrandom(bytes, 0, 0) == 0);
    CHECK(getrandom(bytes, 8, 0x100) == -1 && errno == EINVAL);
    CHECK(getrandom(bytes, 8, GRND_RANDOM | 4) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_getrandom, 8, 8, 0) == -1 && errno == EFAULT);
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(getrandom(page, 8, 0) == -1 && errno == EFAULT);
    size_t many = 1 << 20;
    unsigned char *large = calloc(1, many);
    size_t got = 0;
    while (got < many) {
        ssize_t count = getrandom(large + got, many - got, 0);
        CHECK(count > 0);
        got += count;
    }
    print("large", large + many - 16, 16);
    free(large);
}

// As C libraries do that draw from the vDSO (Linux 6.11, glibc 2.41).
static void vdso(void)
{
    struct { uint32_t size, prot, flags, reserved[13]; } form;
    ssize_t (*draws)(void *, size_t, unsigned, void *, size_t) = NULL;
    void *image = dlopen("linux-vdso.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (image)
        *(void **)&draws = dlsym(image, "__vdso_getrandom");
    if (!draws)
        return;
    unsigned char bytes[16];
    void *state = NULL;
    size_t size = 0;
    long told = draws(NULL, 0, 0, &form, ~0UL);
    if (told == 0) {
        state = mmap(NULL, 4096, form.prot, form.flags, -1, 0);
        size = form.size;
        CHECK(state != MAP_FAILED);
    } else {
        CHECK(told == -ENOSYS);
    }
    CHECK(draws(bytes, sizeof bytes, 0, state, size) == sizeof bytes);
    print("vDSO", bytes, sizeof bytes);
    CHECK(draws(bytes, sizeof bytes, 0x100, state, size) == -EINVAL);
}

static void devices(void)
{
    static const char *names[] = { "/dev/urandom", "/dev/random", "urandom" };
    int directory = open("/dev", O_RDONLY | O_DIRECTORY);
    CHECK(directory >= 0);
    for (int index = 0; index < 3; index++) {
        unsigned char bytes[64];
        int fd = openat(directory, names[index], O_RDONLY | O_CLOEXEC);
        CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
        struct pollfd poller = { .fd = fd, .events = POLLIN };
        CHECK(poll(&poller, 1, 10000) == 1 && poller.revents == POLLIN);
        size_t total = 0;
        while (total < 300000) {
            ssize_t count = read(fd, bytes, sizeof bytes);
            CHECK(count > 0);
            total += count;
        }
        CHECK(read(fd, bytes, 16) == 16);
        print(names[index], bytes, 16);
        close(fd);
    }
    int fd = open("/dev/urandom", O_RDONLY | O_NONBLOCK);
    unsigned char byte;
    CHECK(fd >= 0 && (fcntl(fd, F_GETFL) & O_NONBLOCK) && read(fd, &byte, 1) == 1);
    print("nonblocking", &byte, 1);
    close(fd);
    struct stat stat_of;
    CHECK(stat("/dev/urandom", &stat_of) == 0 && S_ISCHR(stat_of.st_mode));
    fd = open("/dev/urandom", O_WRONLY);
    CHECK(fd >= 0 && write(fd, "x", 1) == 1);
    close(fd);
    char text[64];
    for (int index = 0; index < 2; index++) {
        FILE *file = fopen("/proc/sys/kernel/random/uuid", "r");
        CHECK(file && fgets(text, sizeof text, file) && strlen(text) == 37 && text[14] == '4');
        printf("uuid %s", text);
        fclose(file);
    }
}

static void names(void)
{
    for (int index = 0; index < 3; index++) {
        char name[] = "./nameXXXXXX";
        int fd = mkstemp(name);
        CHECK(fd >= 0);
        printf("mkstemp %s\n", name);
        close(fd);
    }
}

static void children(void)
{
    for (int index = 0; index < 2; index++) {
        fflush(stdout);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            draw("child");
            fflush(stdout);
            child = fork();
            if (child == 0) {
                draw("grandchild");
                fflush(stdout);
                _exit(0);
            }
            CHECK(waitpid(child, NULL, 0) == child);
            draw("child again");
            fflush(stdout);
            _exit(0);
        }
        CHECK(waitpid(child, NULL, 0) == child);
    }
    draw("parent");
}

int main(int argc, char **argv)
{
    // The name of the first temporary file comes first: it may depend on when the program began.
    names();
    print("AT_RANDOM", (void *)getauxval(AT_RANDOM), 16);
    printf("addresses %p %p %p %p\n", (void *)main, (void *)&initialised, malloc(1), (void *)printf);
    calls();
    vdso();
    devices();
    pthread_t other;
    CHECK(pthread_create(&other, NULL, thread, "thread") == 0 && pthread_join(other, NULL) == 0);
    children();
    fflush(stdout);
    if (argc > 1 && strcmp(argv[1], "0")) {
        argv[1][0]--;
        execv("/proc/self/exe", argv);
        CHECK(0);
    }
    return 0;
}
