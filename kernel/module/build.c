// SPDX-License-Identifier: GPL-2.0
/*
 * All of the module in one unit: a fetch goes through three of these files,
 * and the calls from one to the next would cost more than what they do.
 */
#include "getbuf.h"

#include "stats.c"
#include "pagecache.c"
#include "lease.c"
#include "dev.c"
