// SPDX-License-Identifier: GPL-2.0
/* Counters, in /sys/class/misc/getbuf/stats. */
#include "getbuf.h"

#include <linux/cpumask.h>
#include <linux/device.h>
#include <linux/sysfs.h>

static void getbuf_count_refusal(int err)
{
	enum getbuf_stat stat;

	switch (err) {
	case -ENOTSUPP:
		stat = GETBUF_STAT_REFUSED_SOURCE;
		break;
	case -EBADF:
	case -EACCES:
	case -EPERM:
		stat = GETBUF_STAT_REFUSED_ACCESS;
		break;
	case -EDQUOT:
		stat = GETBUF_STAT_REFUSED_LIMIT;
		break;
	case -EBUSY:
		stat = GETBUF_STAT_REFUSED_SLOT;
		break;
	case -EINVAL:
	case -EOPNOTSUPP:
	case -EPROTONOSUPPORT:
		stat = GETBUF_STAT_REFUSED_COMMAND;
		break;
	case -ENOMEM:
		stat = GETBUF_STAT_REFUSED_MEMORY;
		break;
	default:
		stat = GETBUF_STAT_REFUSED_OTHER;
	}
	getbuf_count(stat, 1);
}

static ssize_t stat_show(struct device *dev, struct device_attribute *attr,
			 char *buf)
{
	struct dev_ext_attribute *ea =
		container_of(attr, struct dev_ext_attribute, attr);
	enum getbuf_stat stat = (unsigned long)ea->var;
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu(getbuf_stats, cpu).count[stat]);
	if (stat == GETBUF_STAT_PINNED_PAGES)
		sum <<= PAGE_SHIFT;
	return sysfs_emit(buf, "%ld\n", sum);
}

#define GETBUF_ATTR(_name, _stat)					\
	static struct dev_ext_attribute attr_##_name = {		\
		.attr = __ATTR(_name, 0444, stat_show, NULL),		\
		.var = (void *)GETBUF_STAT_##_stat,			\
	}

GETBUF_ATTR(leases, LEASES);
GETBUF_ATTR(pinned_bytes, PINNED_PAGES);
GETBUF_ATTR(fetches, FETCHES);
GETBUF_ATTR(fetched_bytes, BYTES);
GETBUF_ATTR(retries, RETRIES);
GETBUF_ATTR(allocations, ALLOCATIONS);
GETBUF_ATTR(refused_source, REFUSED_SOURCE);
GETBUF_ATTR(refused_access, REFUSED_ACCESS);
GETBUF_ATTR(refused_limit, REFUSED_LIMIT);
GETBUF_ATTR(refused_slot, REFUSED_SLOT);
GETBUF_ATTR(refused_command, REFUSED_COMMAND);
GETBUF_ATTR(refused_memory, REFUSED_MEMORY);
GETBUF_ATTR(refused_other, REFUSED_OTHER);

static struct attribute *stat_attrs[] = {
	&attr_leases.attr.attr,
	&attr_pinned_bytes.attr.attr,
	&attr_fetches.attr.attr,
	&attr_fetched_bytes.attr.attr,
	&attr_retries.attr.attr,
	&attr_allocations.attr.attr,
	&attr_refused_source.attr.attr,
	&attr_refused_access.attr.attr,
	&attr_refused_limit.attr.attr,
	&attr_refused_slot.attr.attr,
	&attr_refused_command.attr.attr,
	&attr_refused_memory.attr.attr,
	&attr_refused_other.attr.attr,
	NULL
};

static const struct attribute_group stat_group = {
	.name = "stats",
	.attrs = stat_attrs,
};

static const struct attribute_group *getbuf_stat_groups[] = {
	&stat_group,
	NULL
};
