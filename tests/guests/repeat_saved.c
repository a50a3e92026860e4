/*
 * Says what differs from run to run: random bytes of every source, the order of a directory, the time of day. Half of
 * it before it makes UP, the other half when there is GO, with all that was begun before.
 *
 * repeat_saved UP GO DIRECTORY
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void say(const char *what, const unsigned char *bytes, size_t count)
{
	uint64_t hash = 14695981039346656037u;

	for (size_t i = 0; i < count; i++)
		hash = (hash ^ bytes[i]) * 1099511628211u;
	printf("%s %zu %016llx\n", what, count, (unsigned long long)hash);
	fflush(stdout);
}

static void draw(const char *who, size_t count)
{
	static unsigned char bytes[4096];

	if (getrandom(bytes, count, 0) != (ssize_t)count)
		perror("getrandom");
	say(who, bytes, count);
}

static void take(const char *who, int fd, size_t count)
{
	unsigned char *bytes = malloc(count);

	for (size_t done = 0; done < count;) {
		ssize_t some = read(fd, bytes + done, count - done);

		if (some <= 0) {
			perror("read");
			exit(1);
		}
		done += some;
	}
	say(who, bytes, count);
	free(bytes);
}

static int list(int fd)
{
	/* Room for a few. */
	_Alignas(8) char records[120];
	long count = syscall(SYS_getdents64, fd, records, sizeof records);

	if (count < 0)
		perror("getdents64");
	for (long at = 0; at < count;) {
		struct dirent64 *entry = (struct dirent64 *)(records + at);

		printf("%s %lld\n", entry->d_name, (long long)entry->d_off);
		at += entry->d_reclen;
	}
	return count > 0;
}

static void day(void)
{
	struct timespec second = { 1, 0 };
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	printf("%lld.%09ld\n", (long long)now.tv_sec, now.tv_nsec);
	nanosleep(&second, NULL);
	printf("%lld\n", (long long)time(NULL));
}

static void await(const char *name)
{
	struct timespec moment = { 0, 10000000 };

	while (access(name, F_OK))
		nanosleep(&moment, NULL);
}

int main(int argc, char **argv)
{
	struct stat made;
	char word;
	int to_child[2], status;

	if (argc < 4) {
		draw("executed", 100);
		say("at random", (unsigned char *)getauxval(AT_RANDOM), 16);
		day();
		return 0;
	}
	int urandom = open("/dev/urandom", O_RDONLY), random = open("/dev/random", O_RDONLY);
	int directory = open(argv[3], O_RDONLY | O_DIRECTORY);

	draw("main", 13);
	take("urandom", urandom, 100001);
	list(directory);
	if (pipe(to_child))
		return 1;
	pid_t child = fork();

	if (child == 0) {
		close(to_child[1]);
		draw("child", 7);
		if (read(to_child[0], &word, 1) != 0)
			return 1;
		draw("child", 21);
		return 0;
	}
	close(to_child[0]);
	day();
	close(open("made", O_CREAT | O_WRONLY, 0600));
	close(open(argv[1], O_CREAT | O_WRONLY, 0600));
	await(argv[2]);
	draw("main", 1000);
	take("urandom", urandom, 200000);
	take("random", random, 5);
	while (list(directory))
		;
	close(to_child[1]);
	waitpid(child, &status, 0);
	stat("made", &made);
	printf("made %lld, child %d\n", (long long)made.st_mtim.tv_sec, status);
	day();
	fflush(stdout);
	int later = open("/dev/urandom", O_RDONLY);

	take("later", later, 9);
	for (int i = 0; i < 2; i++) {
		if (fork() == 0) {
			execl("/proc/self/exe", argv[0], NULL);
			return 1;
		}
		wait(&status);
	}
	puts("that is all");
	return status != 0;
}
