/* adapters/kv.h -- the built-in backend: items live in the shared-memory store itself.
 *
 * Completes everything before write() and read() return, allocates nothing per write. Contract:
 * adapters/adapter.h.
 */
#ifndef WEIR_ADAPTERS_KV_H
#define WEIR_ADAPTERS_KV_H

#include "adapters/adapter.h"

extern const struct adapter_kind adapter_kv;

#endif
