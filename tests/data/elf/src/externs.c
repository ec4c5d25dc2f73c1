/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What the kernel defines: functions and variables, some of which it may not have. */
#include "bpf.h"

extern void bpf_rcu_read_lock(void) __ksym;
extern void bpf_rcu_read_unlock(void) __ksym;
extern int no_such_kfunc(int) __ksym __weak;
extern const int no_such_variable __ksym __weak;
extern const void bpf_map_area_free __ksym; /* any symbol of /proc/kallsyms */
extern const void no_such_symbol __ksym __weak;
extern int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym __weak;
extern __u32 bpf_dynptr_size(const struct bpf_dynptr *ptr) __ksym __weak;

SEC("tc")
int locked(struct __sk_buff *skb)
{
	int out = skb->len;

	bpf_rcu_read_lock();
	out *= 3;
	bpf_rcu_read_unlock();
	if (&no_such_variable)
		out += no_such_kfunc(out);
	return out;
}

SEC("tc")
int measured(struct __sk_buff *skb)
{
	struct bpf_dynptr ptr;
	int out = 1;

	if (bpf_dynptr_from_skb && bpf_dynptr_size && !bpf_dynptr_from_skb(skb, 0, &ptr))
		out = bpf_dynptr_size(&ptr);
	if ((__u64)&bpf_map_area_free >> 63)
		out += 1000;
	if (&no_such_symbol)
		out += 2000;
	return out;
}
