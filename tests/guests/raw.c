/*
 * Makes system calls by number and prints each result on a line: a number, or the name of the errno.
 *
 *     raw NUMBER [ARG...] [, NUMBER [ARG...]]...
 *
 * ARG: a number; s:TEXT the address of a string; z:N the address of N zero bytes; h:HEX the address
 * of these bytes; =K the result of the K-th call (from 0).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/syscall.h>

static long results[64];
static int calls;

static const char *errno_name(int number)
{
	static const struct { int number; const char *name; } names[] = {
		{EPERM, "EPERM"}, {ENOENT, "ENOENT"}, {ESRCH, "ESRCH"}, {EINTR, "EINTR"},
		{EIO, "EIO"}, {ENXIO, "ENXIO"}, {E2BIG, "E2BIG"}, {ENOEXEC, "ENOEXEC"},
		{EBADF, "EBADF"}, {ECHILD, "ECHILD"}, {EAGAIN, "EAGAIN"}, {ENOMEM, "ENOMEM"},
		{EACCES, "EACCES"}, {EFAULT, "EFAULT"}, {ENOTBLK, "ENOTBLK"}, {EBUSY, "EBUSY"},
		{EEXIST, "EEXIST"}, {EXDEV, "EXDEV"}, {ENODEV, "ENODEV"}, {ENOTDIR, "ENOTDIR"},
		{EISDIR, "EISDIR"}, {EINVAL, "EINVAL"}, {ENFILE, "ENFILE"}, {EMFILE, "EMFILE"},
		{ENOTTY, "ENOTTY"}, {EFBIG, "EFBIG"}, {ENOSPC, "ENOSPC"}, {EROFS, "EROFS"},
		{ENOSYS, "ENOSYS"}, {ELOOP, "ELOOP"}, {ENOKEY, "ENOKEY"}, {EUSERS, "EUSERS"},
		{EOPNOTSUPP, "EOPNOTSUPP"}, {EAFNOSUPPORT, "EAFNOSUPPORT"},
		{EPROTONOSUPPORT, "EPROTONOSUPPORT"}, {ESOCKTNOSUPPORT, "ESOCKTNOSUPPORT"},
		{ECONNREFUSED, "ECONNREFUSED"}, {ENETUNREACH, "ENETUNREACH"},
		{EDESTADDRREQ, "EDESTADDRREQ"}, {EDQUOT, "EDQUOT"},
	};
	static char other[16];

	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (names[i].number == number)
			return names[i].name;
	snprintf(other, sizeof other, "errno %d", number);
	return other;
}

static void usage(void)
{
	fputs("usage: raw NUMBER [ARG...] [, NUMBER [ARG...]]...\n", stderr);
	exit(2);
}

static long bytes_of(const char *hex)
{
	size_t count = strlen(hex) / 2;
	unsigned char *bytes = calloc(1, count + 1);

	for (size_t i = 0; i < count; i++) {
		unsigned byte;
		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			usage();
		bytes[i] = byte;
	}
	return (long)bytes;
}

static long value_of(const char *word)
{
	char *end;

	if (!strncmp(word, "s:", 2))
		return (long)(word + 2);
	if (!strncmp(word, "z:", 2))
		return (long)calloc(1, strtoul(word + 2, NULL, 0));
	if (!strncmp(word, "h:", 2))
		return bytes_of(word + 2);
	if (*word == '=') {
		int index = atoi(word + 1);
		if (index < 0 || index >= calls)
			usage();
		return results[index];
	}
	long value = *word == '-' ? strtol(word, &end, 0) : (long)strtoul(word, &end, 0);
	if (*end || !*word)
		usage();
	return value;
}

int main(int argc, char **argv)
{
	int at = 1;

	if (argc < 2)
		usage();
	while (at < argc) {
		long words[7] = {0};
		int count = 0;

		while (at < argc && strcmp(argv[at], ",")) {
			if (count == 7)
				usage();
			words[count++] = value_of(argv[at++]);
		}
		at++;
		if (!count || calls == 64)
			usage();
		errno = 0;
		long result = syscall(words[0], words[1], words[2], words[3], words[4], words[5],
				      words[6]);
		results[calls++] = result;
		/* A child of fork, vfork or clone is not what the caller asked about. */
		if (result == -1 && errno)
			printf("%s\n", errno_name(errno));
		else
			printf("%ld\n", result);
		fflush(stdout);
	}
	return 0;
}
