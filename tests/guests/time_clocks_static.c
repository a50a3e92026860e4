// cc: -static
/* The same with another way to the vDSO. */
#include "time_clocks.c"
