/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Functions that the kernel calls back. */
#include "bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 5);
	__type(key, __u32);
	__type(value, __u64);
} squares SEC(".maps");

struct sum {
	__u64 total;
	__u32 seen;
};

static long add(void *map, __u32 *key, __u64 *value, struct sum *sum)
{
	sum->total += *value;
	sum->seen++;
	return 0;
}

static long fill(__u32 index, void *context)
{
	__u64 square = (__u64)index * index + *(__u32 *)context;

	bpf_map_update_elem(&squares, &index, &square, BPF_ANY);
	return index == 3;
}

SEC("tc")
int sum_squares(struct __sk_buff *skb)
{
	struct sum sum = {};
	__u32 length = skb->len;

	bpf_loop(5, fill, &length, 0);
	bpf_for_each_map_elem(&squares, add, &sum, 0);
	return sum.total * 10 + sum.seen;
}
