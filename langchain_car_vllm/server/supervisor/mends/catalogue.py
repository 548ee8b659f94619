"""All mends, in the order in which they are applied to a module."""

from . import (
    adapters,
    batch_rows,
    chat_template,
    grammar_kernel,
    logprobs,
    memory_limits,
    named_files,
    open_pages,
    prefix_after_hit,
    prefix_cache_folder,
    quiet_log,
    request_count,
    request_end,
    rerank_pairs,
    schema_admission,
    served_names,
)

MENDS = (
    *memory_limits.MENDS,
    *request_end.MENDS,
    *quiet_log.MENDS,
    *grammar_kernel.MENDS,
    *chat_template.MENDS,
    *schema_admission.MENDS,
    *batch_rows.MENDS,
    *prefix_after_hit.MENDS,
    *prefix_cache_folder.MENDS,
    *served_names.MENDS,
    *request_count.MENDS,
    *open_pages.MENDS,
    *named_files.MENDS,
    *adapters.MENDS,
    *logprobs.MENDS,
    *rerank_pairs.MENDS,
)
