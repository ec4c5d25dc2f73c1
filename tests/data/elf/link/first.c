/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Defines what the other object declares, and a function that the other one has better. */
#include "../src/bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

struct list {
	struct list *next;
	__u64 value;
};
__u64 total = 5;
struct list list = {0, 9};
static volatile __u32 own = 7;
static volatile __u64 cleared;
const volatile int limit = 10;

__hidden int scale(int x)
{
	return x * 3 + own;
}

__weak int pick(int x)
{
	return x + 1;
}

SEC("tc")
int first(struct __sk_buff *skb)
{
	__u32 key = skb->len;
	__u64 one = 1;

	bpf_map_update_elem(&counts, &key, &one, BPF_ANY);
	total += skb->len;
	own++;
	cleared += 2;
	return scale(skb->len) + pick(1) + limit + cleared;
}
