/*
 * Sets the clock in three ways and says what it shows then, in its own process and in one that was
 * forked before.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void say(const char *what, int done)
{
	if (done < 0)
		printf("%s: %s\n", what, strerror(errno));
	else
		printf("%s: %ld\n", what, (long)time(NULL) / 100);
	fflush(stdout);
}

int main(void)
{
	struct timespec first = { 1000000000, 5 };
	struct timeval second = { 1500000000, 5 };
	struct timex third = { .modes = ADJ_SETOFFSET, .time = { .tv_sec = 100000 } };
	struct timex state = { 0 };
	int go[2];
	char byte = 0;

	if (pipe(go))
		return 1;
	if (!fork()) {
		close(go[1]);
		if (read(go[0], &byte, 1) == 1)
			say("a child of before", 0);
		return 0;
	}
	say("clock_settime", clock_settime(CLOCK_REALTIME, &first));
	say("settimeofday", settimeofday(&second, NULL));
	say("adjtimex", adjtimex(&third));
	if (adjtimex(&state) < 0 || labs(state.time.tv_sec - time(NULL)) > 2)
		puts("adjtimex tells another time");
	if (write(go[1], &byte, 1) != 1)
		return 1;
	wait(NULL);
	return 0;
}
