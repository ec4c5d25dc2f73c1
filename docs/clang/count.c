/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "bpf.h"

struct counters {
	__u64 packets, bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct counters);
} marks SEC(".maps");

SEC("tc")
int count_marks(struct __sk_buff *skb)
{
	__u32 mark = skb->mark;
	struct counters *found = bpf_map_lookup_elem(&marks, &mark);

	if (found) {
		__sync_fetch_and_add(&found->packets, 1);
		__sync_fetch_and_add(&found->bytes, skb->len);
	} else {
		struct counters first = {1, skb->len};

		bpf_map_update_elem(&marks, &mark, &first, BPF_NOEXIST);
	}
	return -1;
}
