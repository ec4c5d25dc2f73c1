/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Maps with structures as key and value, per CPU too, and one whose name is longer than the kernel takes. */
#include "bpf.h"

struct key {
	__u32 address;
	__be16 port;
	__u8 pad[2];
};

struct value {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key);
	__type(value, struct value);
} connections_by_address SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct value);
} per_cpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16);
	__uint(key_size, 4);
	__uint(value_size, 12);
} sized SEC(".maps");

SEC("tc")
int account(struct __sk_buff *skb)
{
	struct key key = {.address = skb->len / 10, .port = 80};
	struct value first = {1, skb->len}, *found;
	__u32 zero = 0, other[3] = {1, 2, skb->len};

	found = bpf_map_lookup_elem(&per_cpu, &zero);
	if (found) {
		found->packets++;
		found->bytes += skb->len;
	}
	bpf_map_update_elem(&sized, &zero, other, BPF_ANY);
	found = bpf_map_lookup_elem(&connections_by_address, &key);
	if (!found)
		return bpf_map_update_elem(&connections_by_address, &key, &first, BPF_NOEXIST);
	__sync_fetch_and_add(&found->packets, 1);
	__sync_fetch_and_add(&found->bytes, skb->len);
	return found->packets * 1000 + found->bytes;
}
