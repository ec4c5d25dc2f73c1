/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
 *
 * Bit fields as clang lays them out, in memory and in BTF. bitfields_el.btf and bitfields_el.data are sections of the
 * object for a little-endian machine, bitfields_eb.* for a big-endian one: the variables of .data one after the other,
 * each at a multiple of 8 bytes. gcc's .data for x86-64 (-fno-toplevel-reorder) is the same as bitfields_el.data.
 *
 *   for e in el eb; do
 *     clang -g -O2 -target bpf$e -fdebug-compilation-dir=. -c bitfields.c -o bitfields_$e.o
 *     llvm-objcopy --dump-section .BTF=bitfields_$e.btf --dump-section .data=bitfields_$e.data \
 *       bitfields_$e.o /dev/null
 *   done
 *   gcc -O2 -fno-toplevel-reorder -c bitfields.c -o bitfields_x86.o
 *   llvm-objcopy --dump-section .data=bitfields.x86 bitfields_x86.o /dev/null && cmp bitfields_el.data bitfields.x86
 *
 * Made with clang 14 and gcc 12.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;

#define VALUE(name) struct name name##_value __attribute__((aligned(8), used, section(".data")))

/* Several in a unit, and one that begins the next. */
struct units {
	u32 a : 5;
	u32 b : 11;
	s32 c : 13;
	u32 d : 7;
	u32 e;
};
VALUE(units) = {.a = 0x15, .b = 0x5a5, .c = -1234, .d = 0x55, .e = 0xdeadbeef};

/* Different types share bytes; then padding, and a byte behind it. */
struct mixed {
	u8 a : 4;
	u16 b : 12;
	u8 c;
	u32 : 6;
	u32 d : 10;
	u8 e;
};
VALUE(mixed) = {.a = 9, .b = 0xabc, .c = 0x77, .d = 0x2aa, .e = 0x11};

/* A width of 0 begins a new unit. */
struct zero_width {
	u16 a : 3;
	u16 : 0;
	u16 b : 3;
	u8 c : 1;
	u8 : 0;
	u8 d : 1;
};
VALUE(zero_width) = {.a = 5, .b = 6, .c = 1, .d = 1};

/* 64 bits: across the middle, the whole, the rest. */
struct long_ones {
	u64 a : 20;
	u64 b : 30;
	s64 c : 14;
	u64 d : 64;
	u64 e : 33;
	u64 f : 31;
};
VALUE(long_ones) = {.a = 0xabcde, .b = 0x2bcdef01, .c = -2, .d = 0x0123456789abcdefULL, .e = 0x1f00dcafeULL,
		    .f = 0x76543210};

/* Whole bytes as bit fields, behind an ordinary one. */
struct bytes {
	u8 a;
	u32 b : 8;
	u32 c : 16;
	s8 d : 8;
	u16 e : 16;
};
VALUE(bytes) = {.a = 1, .b = 0x22, .c = 0x3344, .d = -5, .e = 0x6677};

/* Without alignment they follow each other bit by bit. */
struct packed_ones {
	u8 a : 3;
	u32 b : 17;
	u16 c : 9;
	u8 d;
	u32 e : 30;
} __attribute__((packed));
VALUE(packed_ones) = {.a = 5, .b = 0x1abcd, .c = 0x155, .d = 0xee, .e = 0x2aaaaaaa};

/* Padding alone sets no alignment. */
struct only_padding {
	u8 a;
	u32 : 5;
	u8 b;
};
VALUE(only_padding) = {.a = 0xaa, .b = 0xbb};

union either {
	u32 whole;
	struct {
		u32 low : 4;
		u32 rest : 28;
	} parts;
	s32 few : 3;
};
union either either_value __attribute__((aligned(8), used, section(".data"))) = {.parts = {.low = 0xc, .rest = 0x1234567}};
