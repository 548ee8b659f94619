"""All mends, in the order in which they are applied to a module."""

from . import (
    batch_rows,
    chat_template,
    grammar_kernel,
    prefix_cache_folder,
    request_end,
    schema_admission,
)

MENDS = (
    *request_end.MENDS,
    *grammar_kernel.MENDS,
    *chat_template.MENDS,
    *schema_admission.MENDS,
    *batch_rows.MENDS,
    *prefix_cache_folder.MENDS,
)
