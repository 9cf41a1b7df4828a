/* broker/log.h -- lines about state changes on stderr: key=value, at most LOG_LINES_PER_SECOND, the
 * rest counted.
 *
 * Process and thread: the broker's loop thread. Never once per message.
 */
#ifndef WEIR_BROKER_LOG_H
#define WEIR_BROKER_LOG_H

#include "shm/status.h"

enum { LOG_LINES_PER_SECOND = 20 };

void log_line(const char *format, ...) WEIR_PRINTF(1, 2);

#endif
