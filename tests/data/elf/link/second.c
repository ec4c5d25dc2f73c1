/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Declares what the other object defines, and has a function and variables of the same names. */
#include "../src/bpf.h"

extern struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} counts __attribute__((section(".maps")));

struct list {
	struct list *next;
	__u64 value;
};
extern __u64 total;
extern struct list list;
extern const volatile int limit;
extern int scale(int x) __hidden;
static volatile __u32 own = 1000;
static volatile __u64 cleared;
static volatile char text[] = "text";

__hidden int pick(int x)
{
	return x + 100;
}

static __noinline int helper(int x)
{
	own += x;
	cleared += own;
	return own + text[1];
}

SEC("tc")
int second(struct __sk_buff *skb)
{
	__u32 key = skb->len;
	__u64 *found = bpf_map_lookup_elem(&counts, &key);

	return scale(2) + pick(2) + total + limit + (found ? *found : 0) * 10000 + helper(3) + list.value + cleared;
}
