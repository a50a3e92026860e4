// cc: -pthread
/*
 * Threads look at files of different owners, each file in every way that there is, with descriptors and
 * working directories of their own. Prints how many looks told of an owner, a group or permissions that the file has not.
 *
 *     root_looks THREADS ROUNDS
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES = 24 };

static int rounds;
static _Atomic int wrong;

static void must(long done, const char *what)
{
	if (done < 0) {
		perror(what);
		exit(1);
	}
}

static void expect(int number, long done, long uid, long gid, long mode, const char *way)
{
	if (done == 0 && uid == 100 + number && gid == 200 + number && mode == 0600 + number)
		return;
	if (wrong++ == 0)
		printf("%d by %s: %ld, %ld:%ld %lo\n", number, way, done, uid, gid, mode);
}

#define LOOK(way, call)                                                                                               \
	do {                                                                                                          \
		struct stat found = {0};                                                                              \
		long done = call;                                                                                     \
		expect(number, done, found.st_uid, found.st_gid, found.st_mode & 07777, way);                         \
	} while (0)

/* Every thread has descriptors and a working directory of its own: the same numbers mean something else to each. */
static void *look(void *which)
{
	long first = (long)which;
	must(unshare(CLONE_FILES | CLONE_FS), "unshare");
	for (int round = 0; round < rounds; round++) {
		int number = (first + round) % FILES;
		char name[32], path[64], here[64], link[32];
		sprintf(name, "f%d", number);
		sprintf(path, "d%d/%s", number, name);
		sprintf(here, "d%d", number);
		sprintf(link, "l%d", number);
		int base = open(".", O_PATH | O_DIRECTORY);
		must(base, "open");
		LOOK("path", fstatat(AT_FDCWD, path, &found, AT_SYMLINK_NOFOLLOW));
		LOOK("link", fstatat(base, link, &found, 0));
		int directory = open(here, O_RDONLY | O_DIRECTORY);
		must(directory, "open a directory");
		LOOK("name in a directory", fstatat(directory, name, &found, 0));
		int file = openat(directory, name, O_RDONLY), handle = openat(directory, name, O_PATH);
		must(file, "open a file");
		must(handle, "open a handle");
		LOOK("descriptor", fstat(file, &found));
		LOOK("handle", fstat(handle, &found));
		must(fchdir(directory), "fchdir");
		LOOK("name", stat(name, &found));
		struct statx more = {0};
		long done = statx(AT_FDCWD, name, 0, STATX_BASIC_STATS, &more);
		expect(number, done, more.stx_uid, more.stx_gid, more.stx_mode & 07777, "statx");
		must(fchdir(base), "fchdir back");
		close(base);
		close(directory);
		close(file);
		close(handle);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[16];
	int count = argc > 1 ? atoi(argv[1]) : 1;
	rounds = argc > 2 ? atoi(argv[2]) : 1;
	umask(022);
	for (int number = 0; number < FILES; number++) {
		char path[64], link[32];
		sprintf(path, "d%d", number);
		must(mkdir(path, 0755), path);
		sprintf(path, "d%d/f%d", number, number);
		sprintf(link, "l%d", number);
		int file = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);
		must(file, path);
		must(fchown(file, 100 + number, 200 + number), "fchown");
		must(fchmod(file, 0600 + number), "fchmod");
		close(file);
		must(symlink(path, link), link);
	}
	for (int i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, look, (void *)(long)(i * 7)))
			return 2;
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	printf("%d wrong\n", wrong);
	return wrong != 0;
}
