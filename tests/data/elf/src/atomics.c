/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Atomic operations; those that give the old value back exist from -mcpu=v3 on. */
#include "bpf.h"

__u64 total;
__u32 narrow;
__u64 bits = 0xf0;

SEC("tc")
int atomics(struct __sk_buff *skb)
{
	__u64 old = 0;

	__sync_fetch_and_add(&total, skb->len);
	__sync_fetch_and_add(&narrow, 3);
#if CPU >= 3
	old = __sync_fetch_and_or(&bits, 0x0f);
	old += __sync_fetch_and_and(&bits, 0x3c);
	old += __sync_fetch_and_xor(&bits, 0xff);
	old += __sync_val_compare_and_swap(&bits, 0xc3, 0x11);
	old += __sync_lock_test_and_set(&bits, 0x77);
	old += __sync_fetch_and_add(&narrow, 4);
#endif
	return old + total + narrow + bits;
}
