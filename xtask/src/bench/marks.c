// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A plugin of QEMU's: counts the instructions that the guest executes, user and
 * kernel apart, and writes both numbers each time that the guest executes
 * `xchg %bx,%bx`, which does nothing and which compilers do not produce.
 *
 *     -plugin FILE.so,out=NUMBERS
 *
 * What it needs of QEMU's plugin interface, version 1 (QEMU 4.2 to 8.2), is
 * declared here, as distributions do not package the header.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*tb_cb)(uint64_t id, struct qemu_plugin_tb *tb);
typedef void (*udata_cb)(unsigned int vcpu, void *data);
enum { ADD_U64 = 0 };
enum { NO_REGISTERS = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, tb_cb cb);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int op, void *ptr,
					      uint64_t imm);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, udata_cb cb,
					    int flags, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t user, kernel;
static FILE *out;

static void mark(unsigned int vcpu, void *data)
{
	(void)vcpu;
	(void)data;
	fprintf(out, "%" PRIu64 " %" PRIu64 "\n", user, kernel);
	fflush(out);
}

static void translate(uint64_t id, struct qemu_plugin_tb *tb)
{
	static const unsigned char xchg_bx_bx[] = { 0x66, 0x87, 0xdb };
	size_t count = qemu_plugin_tb_n_insns(tb);
	/* The kernel is in the upper half. */
	int is_kernel = qemu_plugin_tb_vaddr(tb) >> 63;

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD_U64, is_kernel ? &kernel : &user, count);
	for (size_t i = 0; i < count && !is_kernel; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		if (qemu_plugin_insn_size(insn) == sizeof(xchg_bx_bx) &&
		    !memcmp(qemu_plugin_insn_data(insn), xchg_bx_bx, sizeof(xchg_bx_bx)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, mark, NO_REGISTERS, NULL);
	}
}

__attribute__((visibility("default"))) int
qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	(void)info;
	if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w"))) {
		fprintf(stderr, "marks: out=FILE is needed, and has to be writable\n");
		return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
	return 0;
}
