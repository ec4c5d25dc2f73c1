# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The messages of the verifier, and what each means: the table behind `pybpfasm.diagnosis`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["MESSAGES", "Message"]


@dataclass(frozen=True, slots=True)
class Message:
    """A kind of message: the pattern to know it by, why the verifier says it, and what to do.

    ``why`` and ``advice`` may name groups of the pattern in braces. ``old`` marks what current kernels no
    longer say; those patterns are from their sources, not from logs.
    """

    key: str
    pattern: re.Pattern[str]
    why: str
    advice: str
    old: bool = False


def _m(key: str, pattern: str, why: str, advice: str, old: bool = False) -> Message:
    return Message(key, re.compile(pattern), why, advice, old)


_R = r"R(?P<r>\d+)"

#: The first that is found in a message explains it: what is special comes before what is general.
MESSAGES: Final[tuple[Message, ...]] = (
    # Registers.
    _m(
        "unset-register",
        rf"{_R} !read_ok",
        "r{r} holds nothing here: it was never set on this way, or a call took it away (calls keep only r6 "
        "to r9)",
        "set r{r} on every way to this instruction; keep what a call must not lose in r6 to r9 or on the "
        "stack",
    ),
    _m(
        "frame-pointer",
        r"frame pointer is read only",
        "r10 is the frame pointer, and no instruction may change it",
        "copy r10 to another register and change that",
    ),
    _m(
        "no-such-register",
        rf"{_R} is invalid",
        "there are only the registers r0 to r10",
        "use one of r0 to r9 for values",
        old=True,
    ),
    # Pointers that may be null.
    _m(
        "maybe-null",
        rf"{_R} invalid mem access '(?P<kind>[a-z_]+)_or_null'",
        "r{r} may be 0: what it comes from (a look-up, a socket, a reservation) can fail",
        "compare r{r} with 0 as a 64-bit register, and come here only where it is not",
    ),
    _m(
        "maybe-null-arithmetic",
        rf"{_R} pointer arithmetic on (?P<kind>[a-z_]+)_or_null prohibited",
        "r{r} may be 0, and then its sum with something is no address",
        "compare r{r} with 0 before you add to it",
    ),
    _m(
        "maybe-null-argument",
        rf"{_R} type=(?P<kind>[a-z_]+)_or_null expected=(?P<wanted>.*)",
        "r{r} may be 0, and this call wants something that is there",
        "compare r{r} with 0 before the call",
    ),
    # Numbers where addresses are wanted.
    _m(
        "scalar-access",
        rf"{_R} invalid mem access '(?:scalar|inv)'",
        "r{r} is a plain number to the verifier here, not an address: it was computed, or read from memory "
        "that "
        "does not keep pointers, or it is a packet pointer from before a call that may move the packet",
        "get the address anew from where it comes from, and keep it in a register or in 8 aligned bytes of "
        "stack",
    ),
    _m(
        "end-access",
        rf"{_R} invalid mem access '(?P<kind>pkt_end)'",
        "r{r} is the end of the packet, where nothing can be read",
        "read through data, after comparing it with data_end",
    ),
    _m(
        "other-access",
        rf"{_R} invalid mem access '(?P<kind>\w+)'",
        "nothing can be read or written through r{r}, which is of the kind {kind}",
        "use a pointer to the stack, the context, a packet or a map's value",
    ),
    # What a lock, a timer or another object in a map's value needs.
    _m(
        "value-object-btf",
        r"map '(?P<map>[^']*)' (?:has to have BTF in order to use (?P<object>\w+)"
        r"|doesn't have '(?:struct )?(?P<missing>\w+)'|has no valid (?P<valid>\w+)"
        r"|is not a struct type or (?P<mangled>\w+) is mangled)",
        "the kernel knows of a lock, a timer or another object in a map's value only by the value's BTF, and "
        "that of map {map} does not have it",
        "declare the map's value as a Struct with a member of that type, Nested(BpfTimer) or another of "
        "pybpfasm.kernel.values",
    ),
    _m(
        "value-object-direct",
        r"(?P<object>bpf_\w+|kptr) cannot be accessed (?:directly|indirectly)",
        "{object} in a map's value belongs to the kernel, and no program may read or write its bytes",
        "use the helpers that are for it, and read and write the members around it",
    ),
    _m(
        "value-object-place",
        r"off -?\d+ doesn't point to '(?:struct )?(?P<object>\w+)'|{R} doesn't have constant offset\. "
        r"(?P<constant>\w+) has".replace("{R}", r"R(?P<r>\d+)"),
        "the address that is passed is not that of the object in the map's value",
        "pass the address of the value plus the member's constant offset",
    ),
    _m(
        "timer-map",
        r"(?P<object>\w+) pointer in R1 map_uid=\d+ doesn't match map pointer in R2",
        "the {object} is of a value of another map than the one in r2, or of another look-up of it",
        "pass the map that the value was looked up in",
    ),
    _m(
        "lock-call",
        r"function calls are not allowed while holding a lock",
        "while a lock is held nothing may be called",
        "call before the lock is taken or after it is given back",
    ),
    _m(
        "lock-program",
        r"(?P<type>\w+(?: \w+)?) prog(?:ram)?s cannot use (?P<object>bpf_\w+)",
        "programs of this type can't use {object}",
        "share the value through atomic instructions, or use another program type",
    ),
    # RCU.
    _m(
        "rcu-region",
        r"(?:cannot|can) be used inside bpf_rcu_read_lock-ed region|unmatched rcu read (?:un)?lock"
        r"|bpf_rcu_read_unlock is missing"
        r"|nested rcu read lock|requires RCU critical section protection|must be a rcu pointer",
        "bpf_rcu_read_lock and bpf_rcu_read_unlock do not fit together on this way, or something is used "
        "outside (or inside) of what they enclose",
        "lock once, unlock on every way before the program ends, and use what is protected in between",
    ),
    _m(
        "preempt-region",
        r"cannot be used inside bpf_(?:preempt_disable|local_irq_save)-ed region|unmatched attempt to "
        r"enable preemption|bpf_(?:preempt_enable|local_irq_restore) is missing"
        r"|in (?:non-preemptible|IRQ disabled)[- ]region|(?:in|restore irqs) out of order",
        "what switches off preemption or interrupts, and what switches them on again, do not fit together on "
        "this way, or something that can sleep is used in between",
        "switch on again on every way before the program ends, and in the opposite order",
    ),
    # Dynptrs and iterators.
    _m(
        "dynptr-uninitialized",
        r"Expected an initialized (?:dynptr|(?P<iter>iter_\w+)) as arg #?(?P<n>\d+)"
        r"|expected an initialized (?P<iter2>iter_\w+) as arg #?(?P<n2>\d+)",
        "the dynptr or iterator that is passed was not made on this way, or has been released",
        "make it first (bpf_dynptr_from_skb, bpf_iter_num_new, …), and pass the address of its stack slot",
    ),
    _m(
        "dynptr-initialized",
        r"(?i)dynptr has to be an uninitialized dynptr|expected uninitialized (?P<iter>iter_\w+) as arg "
        r"#?(?P<n>\d+)|cannot overwrite referenced dynptr",
        "where a dynptr or an iterator is to be made, there is one already",
        "release the other one first, or use another place on the stack",
    ),
    _m(
        "dynptr-place",
        r"cannot pass in dynptr at an offset|dynptr has to be at a constant offset"
        r"|expected pointer to stack or (?:const struct bpf_dynptr|dynptr_ptr)|expected pointer to an "
        r"iterator on "
        r"stack",
        "a dynptr or an iterator is passed by the address where it begins, at a constant offset of the stack",
        "pass r10 plus a constant: -16 or below for a dynptr, which takes 16 bytes",
    ),
    # The packet.
    _m(
        "packet-helper",
        r"helper access to the packet is not allowed",
        "this helper can't work on the packet's own bytes",
        "copy them to the stack first",
    ),
    _m(
        "packet-bounds",
        r"invalid access to packet, off=(?P<off>-?\d+) size=(?P<size>\d+), "
        r"R(?P<r>\d+)\(id=0,off=-?\d+,r=(?P<range>-?\d+)\)",
        "the packet may be shorter: {size} bytes at {off} are read, and only {range} are known to be there",
        "compare (packet pointer + offset + {size}) with data_end, and come here only where it is not "
        "above it; the "
        "comparison must be of the pointer that is used, or of one with the same variable part",
    ),
    _m(
        "packet-bounds-variable",
        r"invalid access to packet, off=-?\d+ size=\d+, R(?P<r>\d+)\(id=",
        "the packet may be shorter than what is accessed through r{r}",
        "compare the pointer plus the size with data_end first; where the offset varies, bound it with & "
        "or < before",
    ),
    _m(
        "packet-offset",
        rf"{_R} offset is outside of the packet",
        "r{r} may lead in front of the packet, or more than 64 KiB into it",
        "bound what is added to the packet pointer to less than 65536, and add nothing negative",
    ),
    _m(
        "packet-write",
        r"cannot write into packet",
        "programs of this type may not change packets directly",
        "use skb_store_bytes, or a program type that may",
    ),
    # Map values and other memory.
    _m(
        "memory-max",
        rf"{_R} max value is outside of the (?:allowed memory range|array range|map value range)",
        "the largest value that r{r} can have leads behind the end of the memory",
        "bound the part that varies more tightly: the largest value plus the size of the access must fit",
    ),
    _m(
        "value-bounds",
        r"invalid access to map value, value_size=(?P<room>\d+) off=(?P<off>-?\d+) size=(?P<size>\d+)",
        "{size} bytes at {off} of a map's value are accessed, which has {room}",
        "take a smaller offset, or declare the map's value larger",
    ),
    _m(
        "argument-unbounded-size",
        rf"{_R} unbounded (?:memory access|size), use 'var &= const' or 'if \(var < const\)'",
        "the size in r{r} has no upper bound that the verifier knows",
        "bound it: & a mask, or come here only where it is below a constant",
    ),
    _m(
        "memory-unbounded",
        rf"{_R} unbounded memory access",
        "r{r} has a part that varies, and the verifier knows no upper bound of it",
        "bound it first, with & and a mask or by a comparison with < (unsigned), in the register that is "
        "added",
    ),
    _m(
        "memory-bounds",
        r"invalid access to memory, mem_size=(?P<room>\d+) off=(?P<off>-?\d+) size=(?P<size>\d+)",
        "{size} bytes at {off} are accessed of memory that has {room}",
        "stay within it, or ask for more (the size given to ringbuf_reserve, for instance)",
    ),
    _m(
        "memory-min",
        rf"{_R} min value is (?:outside of the allowed memory range|outside of the array range|negative.*)",
        "the smallest value that r{r} can have is negative, or leads in front of the memory",
        "mask the part that varies (&), or compare it unsigned, so that it can't be negative",
    ),
    _m(
        "value-read-only",
        r"write into map forbidden, value_size=",
        "programs may not write to this map (BPF_F_RDONLY_PROG)",
        "create the map without that flag, or write to another one",
    ),
    _m(
        "value-write-only",
        r"read from map forbidden, value_size=",
        "programs may not read from this map (BPF_F_WRONLY_PROG)",
        "create the map without that flag",
    ),
    _m(
        "map-write",
        r"only read from (?P<what>[\w*]+(?: \w+)?) is supported",
        "this is the kernel's own structure, which can't be written",
        "a map's value comes from map_lookup_elem; write to that",
    ),
    # The stack.
    _m(
        "stack-bounds",
        r"invalid (?P<access>read from|write to|access to|indirect access to|indirect read from) stack "
        r"R(?P<r>\d+) off=(?P<off>-?\d+) size=(?P<size>\d+)",
        "{size} bytes at r10{off} are outside the stack, which is the 512 bytes in front of r10",
        "use offsets of -512 to -1, and what is large from a map",
    ),
    _m(
        "stack-bounds-old",
        r"invalid stack (?:type R(?P<r>\d+) )?off=(?P<off>-?\d+) (?:access_)?size=(?P<size>\d+)",
        "{size} bytes at r10{off} are outside the stack, which is the 512 bytes in front of r10",
        "use offsets of -512 to -1, and what is large from a map",
        old=True,
    ),
    _m(
        "stack-variable",
        r"(?:invalid variable-offset|invalid unbounded variable-offset|variable(?:-offset)?) .*stack|R\d+ "
        r"variable stack access prohibited",
        "the offset into the stack varies more than the stack is large",
        "bound the offset first (& or a comparison)",
    ),
    _m(
        "stack-unwritten",
        r"invalid (?:indirect )?read from stack(?: R\d+)? off (?P<off>-?\d+)\+(?P<at>\d+) size (?P<size>\d+)",
        "bytes of the stack are read that nothing was written to on this way, or parts of a saved pointer",
        "set all of the memory first (b.zero(…)), and read saved pointers back with 8 bytes",
    ),
    _m(
        "stack-spill",
        r"invalid size of register (?:spill|fill)|attempt to corrupt spilled pointer on stack",
        "a pointer is kept on the stack by 8 aligned bytes, and read back by the same",
        "use u64 at an offset that is a multiple of 8",
    ),
    _m(
        "stack-depth",
        r"combined stack size of (?P<calls>\d+) calls is (?P<size>\d+)\. Too large",
        "the functions that call each other need {size} bytes of stack together; they have 512",
        "use less stack in the functions on this way, or put what is large in a map",
    ),
    _m(
        "call-depth",
        r"the call stack of (?P<calls>\d+) frames is too deep",
        "functions are nested {calls} deep; 8 are possible, and a function can't call itself",
        "nest fewer functions, and turn recursion into a loop",
    ),
    _m(
        "misaligned-stack",
        r"misaligned stack access off .*size (?P<size>\d+)",
        "on the stack, {size} bytes need an address that is a multiple of {size}",
        "change the offset to a multiple of {size}, or access smaller parts",
    ),
    _m(
        "misaligned",
        r"misaligned (?P<what>value|packet|context|ptr_|)? ?access off .*size (?P<size>\d+)",
        "{size} bytes need an address that is a multiple of {size} here",
        "change the offset to a multiple of {size}, or access smaller parts",
    ),
    # The context.
    _m(
        "context-field",
        r"invalid bpf_context access off=(?P<off>-?\d+) size=(?P<size>\d+)",
        "programs of this type (and attach type) can't access {size} bytes at {off} of their context: they "
        "do not have "
        "that field, may only read it, or it has another size",
        "see which fields the program type has; most are read as a whole",
    ),
    _m(
        "context-modified",
        r"(?:dereference of modified|variable|negative offset) ctx (?:ptr|access)",
        "the context is read through r1 as the program got it, or a copy; here something was added to it",
        "put the offset into the instruction (a field of the context), and leave the register as it is",
    ),
    _m(
        "flow-keys",
        r"invalid access to flow keys off=(?P<off>-?\d+) size=(?P<size>\d+)",
        "{size} bytes at {off} of the flow keys are accessed, which are smaller",
        "read and write whole fields of struct bpf_flow_keys",
    ),
    _m(
        "struct-bounds",
        r"access beyond (?:struct|the end of member) (?P<struct>\w+)|struct (?P<struct2>\w+) doesn't have "
        r"field at "
        r"offset (?P<at>-?\d+)|cannot access ptr member|R\d+ is ptr_(?P<struct3>\w+) (?:invalid|access)"
        r"|field \w+ doesn't have size",
        "the kernel's structure has no field there that could be read, or not in this size",
        "read whole fields at the offsets that this kernel has (core_load does)",
    ),
    _m(
        "pointer-modified",
        r"dereference of modified (?P<kind>\w+) ptr R(?P<r>\d+) off=(?P<off>-?\d+) disallowed",
        "something was added to r{r}, which must be passed and read as it came",
        "put the offset into the instruction that reads, and pass the pointer as it is",
    ),
    _m(
        "buffer-bounds",
        r"{R} invalid (?P<kind>\w+) buffer access: off=(?P<off>-?\d+), size=(?P<size>\d+)|{R2} invalid "
        r"variable "
        r"buffer offset".replace("{R}", r"R(?P<r>\d+)").replace("{R2}", r"R(?P<r2>\d+)"),
        "what is accessed is not within the buffer that the program was given, or its offset varies",
        "use constant offsets within the buffer",
    ),
    _m(
        "context-atomic",
        r"BPF_(?:ATOMIC|XADD|ST|STX) (?:stores into|store into|loads from) R(?P<r>\d+) (?P<kind>\w+) is "
        r"not allowed",
        "this kind of instruction does not work on memory of the kind {kind}",
        "load to a register, compute there, and store the register",
    ),
    # Arithmetic.
    _m(
        "pointer-prohibited",
        rf"{_R} pointer arithmetic on (?P<kind>\w+) prohibited",
        "nothing can be added to r{r}, which is of the kind {kind}",
        "add to a pointer to the stack, a packet or a map's value",
    ),
    _m(
        "pointer-operator",
        rf"{_R} (?:pointer arithmetic with (?P<op>\S+) operator|bitwise operator (?P<bit>\S+) on pointer) "
        rf"prohibited",
        "r{r} is an address: it can be added to and subtracted from, and nothing else",
        "do this with the number before it is added to the address",
    ),
    _m(
        "pointer-32",
        rf"{_R} 32-bit pointer arithmetic prohibited",
        "r{r} is an address of 64 bits, and the operation would cut it to 32",
        "use the r register rather than the w register",
    ),
    _m(
        "pointer-pointer",
        rf"{_R} pointer (?P<op>\S+) pointer prohibited",
        "of two addresses only the difference can be computed",
        "add numbers to addresses, not addresses to each other",
    ),
    _m(
        "pointer-subtracted",
        rf"{_R} tried to subtract pointer from scalar",
        "an address is subtracted from a number",
        "exchange the operands",
    ),
    _m(
        "pointer-unbounded",
        r"math between (?P<kind>\w+) pointer and (?:register with unbounded min value|-?\d+) is not allowed",
        "what is added to the address can be negative without a bound, or is too large",
        "bound the number first: & a mask, or compare it unsigned with a constant",
    ),
    _m(
        "pointer-large",
        r"value -?\d+ makes (?P<kind>\w+) pointer be out of bounds|pointer offset -?\d+ is not allowed",
        "the sum is too far from the memory that the pointer is of",
        "add less; the verifier takes offsets below 2^29",
    ),
    _m(
        "division",
        r"div by zero",
        "the divisor is the constant 0",
        "divide by something else; a register that is 0 at run time is no error, the result is 0 then",
    ),
    _m(
        "shift",
        r"invalid shift (?P<bits>-?\d+)",
        "a shift by {bits} bits is more than the register has, or negative",
        "shift a w register by 0 to 31, an r register by 0 to 63",
    ),
    # Calls.
    _m(
        "call-target",
        r"call to invalid destination|invalid insn idx \d+ insn_cnt|Subprog \w* ?doesn't exist",
        "the call leads to no instruction of the program",
        "call a function by its label",
    ),
    _m(
        "map-index",
        r"fd_idx without fd_array is invalid|kfunc offset > 0 without fd_array|invalid module BTF "
        r"(?:object )?(?:fd|FD)",
        "the instruction names a map or a module by its place in an array of descriptors, and none was given",
        "name maps by their descriptors; load an object through its loader",
    ),
    _m(
        "global-function",
        r"Global function \w+\(\) (?:doesn't return scalar|with)|Global functions need valid BTF|\w+\(\) "
        r"is not a "
        r"global function",
        "a function that is verified by itself must have BTF, return a number, and take the context or "
        "numbers",
        "declare it with @global_function, or make it a @subprogram",
    ),
    _m(
        "sleepable",
        r"programs can be sleepable|Sleepable programs can only use|can only be sleepable|cannot be "
        r"sleepable|\w+ is not "
        r"sleepable",
        "BPF_F_SLEEPABLE does not go with this program type, this hook or a map that the program uses",
        "load the program without that flag, or use array, hash and ring buffer maps only",
    ),
    _m(
        "helper-program",
        r"func (?P<helper>\w+)#(?P<number>\d+) (?:not supported for program type|supported only for)"
        r"|helper call is not "
        r"allowed in probe",
        "{helper} is for other program types, or other hooks of this one",
        "use another helper, or another program type",
    ),
    _m(
        "kernel-mistake",
        r"(?i)verifier (?:bug|internal error)|kernel subsystem misconfigured|bpf verifier is misconfigured"
        r"|in-kernel BTF is "
        r"malformed|btf_vmlinux is malformed",
        "the kernel says of itself that something is wrong with it, and not with the program",
        "where it is about a tail call, give it a map of type PROG_ARRAY (kernels before 6.13 say it so); "
        "else try another kernel, and report it to bpf@vger.kernel.org with the program and the log",
    ),
    _m(
        "helper-forbidden",
        r"(?:program of this type cannot use helper|unknown func) (?P<helper>\w+)#(?P<number>\d+)",
        "programs of this type (and attach type) may not call {helper} on this kernel",
        "use a helper that they may call, or another program type; loader.features.has_helper asks the "
        "kernel",
    ),
    _m(
        "helper-unknown",
        r"invalid func (?P<helper>\w+)#(?P<number>\d+)",
        "this kernel has no helper with the number {number}",
        "look at the number, or use a newer kernel",
    ),
    _m(
        "helper-license",
        r"cannot call GPL-restricted function from non-GPL compatible program",
        "the helper is for programs with a GPL-compatible license",
        "declare the program's license, such as license='Dual BSD/GPL', if that is true",
    ),
    _m(
        "helper-sleeps",
        r"helper call might sleep in a non-sleepable prog",
        "the helper can sleep, and the program runs where nothing may",
        "load the program with BPF_F_SLEEPABLE if its type allows that, or use another helper",
    ),
    _m(
        "kfunc-null",
        r"Possibly NULL pointer passed to (?:trusted|helper)? ?arg#?(?P<n>\d+)",
        "argument {n} may be 0, and this function wants something that is there",
        "compare it with 0 before the call",
    ),
    _m(
        "kfunc-trusted",
        rf"{_R} must be (?:referenced or trusted|referenced(?! when)|a rcu pointer)",
        "r{r} is a pointer that the verifier does not trust to be still valid here",
        "take a reference first (a function such as bpf_task_acquire), or use what the context or another "
        "function of the kernel gave",
    ),
    _m(  # follows a line about the argument, which can be worded as one about a function of the kernel
        "global-argument",
        r"Caller passes invalid args into func#\d+",
        "this global function is given something else than it declares",
        "pass the context first and numbers behind it, in the order that the function declares",
    ),
    _m(
        "kfunc-argument",
        r"(?:arg(?:s)?#(?P<n>\d+)|kernel function \w+ args#(?P<n2>\d+)) (?:expected pointer|pointer type"
        r"|is neither"
        r"|expects|should point|expected)",
        "an argument of a function of the kernel is of another type than it declares",
        "compare the arguments with the function's declaration (pybpfasm.kernel.kfuncs has it)",
    ),
    _m(
        "kfunc-unsupported",
        r"calling kernel function(?:s)? (?:is|are) not (?:supported|allowed) (?:without|in)|JIT (?:does "
        r"not support|is "
        r"required for) calling kernel function|cannot find address for kernel function (?P<name>\w+)",
        "this kernel can't let programs call its functions: that takes the JIT and the kernel's BTF",
        "set net.core.bpf_jit_enable to 1, and use a kernel with CONFIG_DEBUG_INFO_BTF",
    ),
    _m(
        "kfunc-license",
        r"cannot call kernel function from non-GPL compatible program",
        "functions of the kernel are for programs with a GPL-compatible license",
        "declare the program's license, such as license='Dual BSD/GPL', if that is true",
    ),
    _m(
        "kfunc-sleeps",
        r"(?:kernel function|program must be sleepable to call sleepable kfunc|sleepable kfunc) "
        r"?(?P<name>\w*).*"
        r"(?:is sleepable|sleepable)",
        "the function can sleep, and the program runs where nothing may",
        "load the program with BPF_F_SLEEPABLE if its type allows that, or use another function",
    ),
    _m(
        "ksym-address",
        r"ldimm64 failed to find the address for kernel symbol '(?P<name>[^']*)'",
        "the kernel has a type for the variable {name} and no address: it was built without "
        "CONFIG_KALLSYMS_ALL",
        "use another kernel, or do without the variable (declare it weak and ask for its address)",
    ),
    _m(
        "ksym-type",
        r"ldimm64 insn specifies invalid btf_id (?P<id>\d+)|pseudo btf_id (?P<id2>\d+) in ldimm64 isn't",
        "the BTF id in the instruction is of no variable of this kernel",
        "resolve the program with the BTF of the kernel that it is loaded into",
    ),
    _m(
        "sockmap-update",
        r"cannot update sockmap in this context",
        "programs of this type may not put sockets into a sockmap or sockhash",
        "use sock_map_update or sock_hash_update in a sock_ops program, or update the map from outside",
    ),
    _m(
        "key-write",
        rf"write to change key {_R} not allowed",
        "r{r} is a map's key, which nobody may change",
        "delete the entry and add another one",
    ),
    _m(
        "key-bounds",
        r"invalid access to map key, key_size=(?P<room>\d+) off=(?P<off>-?\d+) size=(?P<size>\d+)",
        "{size} bytes at {off} of a map's key are accessed, which has {room}",
        "stay within the key",
    ),
    _m(
        "argument-kind-new",
        rf"{_R} is of type (?P<kind>\S+) but (?P<wanted>\S+) is expected",
        "r{r}, an argument of this call, is of the kind {kind}; it must be {wanted}",
        "look at the order of the arguments, and at what was last put into r{r}",
    ),
    _m(
        "argument-kind",
        rf"{_R} type=(?P<kind>\w*) expected=(?P<wanted>.*)",
        "r{r}, an argument of this call, is of the kind {kind}; it must be: {wanted}",
        "look at the order of the arguments, and at what was last put into r{r}",
    ),
    _m(
        "argument-map",
        r"cannot pass map_type (?P<type>\d+) into func (?P<helper>\w+)#(?P<number>\d+)",
        "{helper} does not work on maps of this type",
        "use the helper for that type of map, or another type",
    ),
    _m(
        "argument-zero-size",
        r"invalid zero-sized read",
        "a size that is passed here can be 0, and this call wants at least 1 byte",
        "compare the size with 0 before the call",
    ),
    _m(
        "argument-string",
        rf"{_R} (?:does not point to a readonly map|is not a constant address)|direct value access on "
        rf"string failed"
        r"|string is not zero-terminated|Invalid format string",
        "the format must be a string that ends with 0, in a read-only map, at a constant address",
        "put it into static data that is read-only (.rodata), and check its % conversions",
    ),
    _m(
        "argument-constant",
        rf"{_R} is not a (?:known constant|const\b)|{_R.replace('<r>', '<r2>')} must be a known constant",
        "this argument must be the same number on all ways",
        "put a constant into the register right before the call",
    ),
    _m(
        "tail-call-map",
        r"expected prog array map for tail call|tail_call abusing map_ptr",
        "tail_call takes one map of type PROG_ARRAY, the same on all ways",
        "give it that map in r2",
    ),
    _m(
        "kfunc",
        r"calling kernel function (?P<name>\w+) is not allowed|kernel (?:function )?btf_id \d+ is not a",
        "programs of this type may not call this function of the kernel",
        "look at which functions (kfuncs) the program type has",
    ),
    _m(
        "callback",
        r"callback function (?:cannot be the main program|not static|not allowed for map)",
        "what is called back must be a static function of the program, and the helper must take one",
        "pass a @subprogram that is not a global function",
    ),
    _m(
        "callback-jit",
        r"(?:callbacks|tail_calls|bpf-to-bpf calls) are not allowed in non-JITed|JIT doesn't support "
        r"bpf-to-bpf calls",
        "callbacks, and tail calls out of functions, work only where programs are compiled (JIT)",
        "set net.core.bpf_jit_enable to 1",
    ),
    _m(
        "tail-call-stack",
        r"tail_calls are not allowed when call stack of previous frames is (?P<size>\d+) bytes",
        "the functions above this tail call use {size} bytes of stack; 256 are allowed, as the stack of the "
        "program that is called comes on top",
        "make the tail call from the main function, or use less stack before it",
    ),
    _m(
        "tail-call-subprogram",
        r"(?:tail_call|LD_ABS) is (?:not allowed in subprogs without BTF|only allowed in functions that "
        r"return 'int')",
        "a function with a tail call or a packet load of classic BPF needs BTF that says it returns int",
        "load the program with its BTF",
    ),
    _m(
        "callback-range",
        r"At callback return the register R0 has .*should have been in \[(?P<low>-?\d+), (?P<high>-?\d+)\]",
        "a callback must return a number from {low} to {high} here",
        "set r0 to such a constant before its exit",
    ),
    _m(
        "subprogram-pointer",
        r"cannot return stack pointer to the caller",
        "the stack of a function is gone when it returns",
        "let the caller pass an address of its own stack",
    ),
    _m(
        "function-argument",
        r"arg#?(?P<n>\d+).*|(?<!register )R\d+ is not a (?:scalar|pointer)",
        "a function that is verified by itself gets something else than its BTF says",
        "pass the context first and numbers behind it, in the order that the function declares",
    ),
    _m(
        "subprogram-result",
        r"At subprogram exit the register R0 is not a scalar value",
        "a global function returns a number, and here r0 is an address",
        "return a number, or make the function a subprogram that is verified with its callers",
    ),
    _m(
        "subprogram-spill",
        r"cannot spill pointers to stack into stack frame of the caller",
        "a function may not put a pointer into the stack of its caller",
        "return it in r0, or keep it in the function's own stack",
    ),
    # References.
    _m(
        "reference-tail-call",
        r"tail_call would lead to reference leak",
        "a tail call leaves the program while it holds something that it must give back",
        "give it back before the tail call",
    ),
    _m(
        "reference-leak",
        r"Unreleased reference id=(?P<id>\d+) alloc_insn=(?P<slot>\d+)|would lead to reference leak",
        "the program can end with something that it took and has not given back (a socket, a reserved "
        "record)",
        "call sk_release, or ringbuf_submit or ringbuf_discard, on every way on which the result was not 0",
    ),
    _m(
        "reference-foreign",
        r"release helper \w+ expects referenced PTR_TO_BTF_ID|R\d+ must be referenced when passed to "
        r"release function"
        r"|reference has not been acquired before|must have zero offset when passed to release func"
        r"|(?:release kernel function|kfunc) \w+ expects refcounted"
        r"|arg (?P<n>\d+) is an unacquired reference",
        "what is given back here was not taken by this program",
        "give back only what a helper such as sk_lookup_tcp returned, and only once",
    ),
    _m(
        "lock",
        r"Locking two bpf_spin_locks|lock.*(?:missing|without|already|inside|region|different|held)|cannot "
        r"be used inside bpf_spin_lock-ed region",
        "a lock is a member of a map's value that BTF declares; it must be given back on every way, with "
        "no call in between",
        "declare Nested(BpfSpinLock) in the map's value, and unlock before anything else is called or the "
        "program ends",
    ),
    # Rights.
    _m(
        "needs-capabilities",
        r"loading/calling other bpf or kernel functions are allowed for CAP_BPF|access is allowed only to "
        r"CAP_PERFMON"
        r"|destructive kfunc calls require CAP_SYS_BOOT",
        "who loads the program does not have the rights for what it does",
        "load it with CAP_BPF and CAP_PERFMON (or as root)",
    ),
    _m(
        "unprivileged-pointer",
        rf"{_R} (?:pointer comparison prohibited|pointer arithmetic prohibited|partial copy of pointer"
        r"|subtraction from stack pointer prohibited|(?:stack )?pointer arithmetic (?:of map value )?goes "
        r"out of range"
        r"|tried to \S+ (?:beyond pointer bounds|from different maps)|has unknown scalar with mixed signed "
        r"bounds"
        r"|has pointer with unsupported alu operation|could not be pushed for speculative)",
        "without CAP_PERFMON the verifier allows less with r{r}, an address: nothing by which the address "
        "could "
        "become visible or be guessed",
        "load the program with CAP_PERFMON (or as root)",
    ),
    # The result.
    _m(
        "result-range",
        r"At (?:program exit|subprogram exit|async callback return) the register R0 .*should have been in "
        r"\[(?P<low>-?\d+), (?P<high>-?\d+)\]",
        "a program of this type must return a number from {low} to {high}",
        "set r0 to such a constant before exit, or bound it",
    ),
    _m(
        "result-unknown",
        r"In async callback the register R0 is not a known value|R0 not a scalar value|At (?:program exit"
        r"|async callback return) the register R0 (?:is not a known value|has (?:unknown "
        r"scalar )?value)",
        "what the program returns is not in the range that its type has, or is an address",
        "set r0 to an allowed constant before exit",
    ),
    _m(
        "result-leak",
        r"R0 leaks addr as return value|R\d+ leaks addr into (?:map|mem|helper|ctx|packet|sock|flow keys)",
        "an address of the kernel would become visible outside",
        "return or store a number; with CAP_PERFMON the verifier allows more",
    ),
    # The shape of the program.
    _m(
        "unreachable",
        r"unreachable insn (?P<slot>\d+)",
        "nothing leads to instruction {slot}",
        "remove it, or jump there",
    ),
    _m(
        "falls-off",
        r"last insn is not an exit or jmp|fell through|fall through",
        "the end of a function can be reached without an exit",
        "end each function with exit or a jump",
    ),
    _m(
        "jump-range",
        r"jump out of range from insn (?P<slot>\d+) to (?P<to>-?\d+)",
        "instruction {slot} jumps to {to}, which is outside its function",
        "jump within the function, and call others",
    ),
    _m(
        "jump-middle",
        r"jump into the middle of (?:ldimm64 )?insn (?P<slot>\d+)|jump to reserved code from insn "
        r"(?P<from>\d+)",
        "a jump leads to the second half of a 16-byte instruction",
        "count slots: a 64-bit immediate load takes two. Labels do that by themselves",
    ),
    _m(
        "endless",
        r"infinite loop detected at insn (?P<slot>\d+)",
        "at instruction {slot} the program is in the state in which it was before, and so never ends",
        "change in every turn what the condition looks at, or use may_goto or bpf_loop",
    ),
    _m(
        "back-edge",
        r"back-edge from insn (?P<slot>\d+) to (?P<to>\d+)",
        "the program has a loop, which kernels before 5.3 refuse, and later ones without CAP_BPF",
        "write the turns out (a Python `for`), or load it with CAP_BPF on a newer kernel",
        old=True,
    ),
    _m(
        "too-complex",
        r"BPF program is too large\. Processed (?P<n>\d+) insn",
        "the verifier gave up after {n} steps: it follows each way and each turn of a loop by itself",
        "make loops shorter, split the program (tail calls, global functions, bpf_loop), branch less on "
        "what varies",
    ),
    _m(
        "too-many-jumps",
        r"The sequence of (?P<n>\d+) jumps is too complex",
        "{n} branches wait to be followed at once, more than the verifier keeps",
        "let ways meet again sooner, and do less in loops",
    ),
    _m(
        "opcode",
        r"unknown opcode (?P<op>[0-9a-f]+)|invalid BPF_\w+|BPF_\S+ uses (?:reserved fields|invalid)"
        r"|invalid atomic "
        r"operand size|unrecognized "
        r"bpf_ld_imm64 insn",
        "this kernel does not know the instruction, or a field that must be 0 is not",
        "the instruction may be newer than the kernel: assemble for its release (target=…)",
    ),
    _m(
        "ld-imm64",
        r"invalid bpf_ld_imm64 insn",
        "a 64-bit immediate load lacks its second half",
        "keep its two slots together",
    ),
    _m(
        "map-fd",
        r"fd (?P<fd>-?\d+) is not pointing to valid bpf_map",
        "descriptor {fd} in the program is no map",
        "give the loader a map for each name in the program's `maps`",
    ),
    _m(
        "too-many-functions",
        r"too many (?:subprograms|different kernel function calls|different module BTFs)",
        "a program has at most 256 functions of its own, and as many of the kernel",
        "split it into programs, by tail calls",
    ),
    _m(
        "attach-btf",
        r"Tracing programs must provide btf_id|attach_btf_id (?P<id>\d+) (?:is|doesn't|points)",
        "a program of this type is loaded for one function of the kernel, by its BTF id",
        "name the function when it is loaded; here, such programs are not supported",
    ),
    _m(
        "map-value-offset",
        r"direct value offset of \d+ is not allowed|invalid access to map value pointer, "
        r"value_size=(?P<room>\d+) off=(?P<off>\d+)"
        r"|no direct value access support for this map type",
        "the address of a map's value is known at load only within the value of an array of one entry",
        "use such a map, or look the value up",
    ),
    _m(
        "packet-load",
        r"at the time of BPF_LD_ABS\|IND R6 != pointer to skb|BPF_LD_\[ABS\|IND\] (?:cannot be "
        r"mixed|instructions)",
        "the packet loads of classic BPF take the context from r6, and exist for socket filters and tc alone",
        "keep the context in r6, or read through data and data_end",
    ),
    _m(
        "socket-field",
        r"invalid (?P<kind>\w*sock\w*) access off=(?P<off>-?\d+) size=(?P<size>\d+)",
        "{size} bytes at {off} of a socket can't be accessed",
        "read whole fields of struct bpf_sock; some are there only for full sockets (sk_fullsock)",
    ),
    _m(
        "socket-write",
        r"cannot write into (?P<kind>\w+)",
        "memory of the kind {kind} is read-only",
        "use a helper to change it",
    ),
    _m(
        "same-insn",
        r"same insn cannot be used with different pointers",
        "one instruction would access memory of different kinds, depending on the way to it",
        "write the access once for each way",
    ),
    _m(
        "btf",
        r"(?:Invalid|missing|invalid) (?:btf|BTF|bpf_line_info|func_info|func info|line_info|insn_off"
        r"|type_id|name)\b.*"
        r"|func_info BTF section doesn't match|number of funcs in func_info doesn't match",
        "the BTF or line information that came with the program does not fit it",
        "assemble the program anew; if that does not help, this is a mistake in pybpfasm",
    ),
)
