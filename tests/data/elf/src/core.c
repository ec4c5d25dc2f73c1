/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Every question that CO-RE can ask of a kernel's types, as far as clang 14 asks them. */
#include "bpf.h"

#define preserve __attribute__((preserve_access_index))

struct list_head {
	struct list_head *next, *prev;
} preserve;

struct sk_buff___mine {
	unsigned int len;
	unsigned int no_such_field;
	char cb[48];
} preserve;

struct tcp_sock {
	unsigned int snd_cwnd;
	unsigned char nonagle : 4;
} preserve;

struct task_struct {
	int pid;
	struct list_head tasks;
	char comm[16];
} preserve;

struct no_such_struct {
	int x;
} preserve;

enum bpf_map_type___mine {
	BPF_MAP_TYPE_RINGBUF___mine = 99,
	BPF_MAP_TYPE_NEVER___mine = 98,
};

struct answers {
	__u32 len_offset, len_size, cb_size, missing, pid_signed, len_signed, nonagle_offset, nonagle_size;
	__u64 nonagle_left, nonagle_right;
	__u32 task_exists, never_exists, task_size, ringbuf, ringbuf_exists, never_value_exists, tasks_prev, comm_at;
} answers;

#define field(value, kind) __builtin_preserve_field_info(value, kind)
#define type(T, kind) __builtin_preserve_type_info(*(T *)0, kind)
#define value(T, v, kind) __builtin_preserve_enum_value(*(T *)v, kind)

SEC("tc")
int ask(struct __sk_buff *skb)
{
	struct sk_buff___mine *buffer = 0;
	struct tcp_sock *tcp = 0;
	struct task_struct *task = 0;

	answers.len_offset = field(buffer->len, 0);
	answers.len_size = field(buffer->len, 1);
	answers.cb_size = field(buffer->cb, 1);
	answers.missing = field(buffer->no_such_field, 2);
	answers.pid_signed = field(task->pid, 3);
	answers.len_signed = field(buffer->len, 3);
	answers.nonagle_offset = field(tcp->nonagle, 0);
	answers.nonagle_size = field(tcp->nonagle, 1);
	answers.nonagle_left = field(tcp->nonagle, 4);
	answers.nonagle_right = field(tcp->nonagle, 5);
	answers.tasks_prev = field(task->tasks.prev, 0);
	answers.comm_at = field(task->comm[3], 0);
	answers.task_exists = type(struct task_struct, 0);
	answers.never_exists = type(struct no_such_struct, 0);
	answers.task_size = type(struct task_struct, 1);
	answers.ringbuf_exists = value(enum bpf_map_type___mine, BPF_MAP_TYPE_RINGBUF___mine, 0);
	answers.never_value_exists = value(enum bpf_map_type___mine, BPF_MAP_TYPE_NEVER___mine, 0);
	answers.ringbuf = value(enum bpf_map_type___mine, BPF_MAP_TYPE_RINGBUF___mine, 1);
	if (answers.missing)
		return buffer->no_such_field;
	return answers.len_offset + answers.ringbuf;
}
