// SPDX-License-Identifier: GPL-2.0-only
/*
 * The C half of rust/, in this module too.
 */
#include "../rust/helpers.c"
