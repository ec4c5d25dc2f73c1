/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Records to a ring buffer. */
#include "bpf.h"

struct record {
	__u64 sequence;
	__u32 length;
	char tag[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} records SEC(".maps");

__u64 sequence;

SEC("tc")
int report(struct __sk_buff *skb)
{
	struct record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	if (!record)
		return -1;
	record->sequence = ++sequence;
	record->length = skb->len;
	__builtin_memcpy(record->tag, "pkt", 4);
	if (skb->len > 100) {
		bpf_ringbuf_discard(record, 0);
		return 100;
	}
	bpf_ringbuf_submit(record, 0);
	return sequence;
}
