/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Maps in maps, filled from the start. */
#include "bpf.h"

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} even SEC(".maps"), odd SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 3);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {.values = {[0] = &even, [1] = &odd}};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u64);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(max_entries, 8);
		__type(key, __u32);
		__type(value, __u32);
	});
} by_name SEC(".maps");

SEC("tc")
int nested(struct __sk_buff *skb)
{
	__u32 which = skb->len & 1, slot = skb->len & 3;
	__u64 name = 7, *count;
	void *map;

	if (bpf_map_lookup_elem(&by_name, &name))
		return -1;
	map = bpf_map_lookup_elem(&outer, &which);
	if (!map)
		return -2;
	count = bpf_map_lookup_elem(map, &slot);
	if (!count)
		return -3;
	*count += skb->len;
	return *count + 1000 * which;
}
