"""One ``evaluate.Metric`` module a file, loaded by path (ftkit/evals/loading.py) and never imported.

Each is self-contained, because ``evaluate.load`` copies the one file, and works in a plain script as well:
``evaluate.load("ftkit/evals/metrics/f1.py", "macro", labels=3)``, alone or in ``evaluate.combine``.

The configuration name holds the setting: ``macro`` (the default), ``micro`` or ``weighted``, with the prefix
``multilabel-`` for rows with any number of labels. Single-label rows are label numbers 0..K-1 of shape [n],
multi-label rows are 0 or 1 of shape [n, K], probabilities are of shape [n, K].

Those of language models (perplexity, bits_per_byte) have no configuration. A row of theirs is a window of text:
``nll`` [n] is the negative log-likelihood of its predicted tokens in nats, ``tokens`` and ``bytes`` [n] how many.

Those of generated answers take ``predictions`` [n], texts, and ``references`` [n], lists of texts any of which is right
(``ended``: whether the model ended the answer by itself). rouge.py is three of them: rouge1, rouge2 and rouge_l are its
configurations. They give ``statistics(predictions=, references=, ended=)`` [n, S] as well, what each row adds to sums:
computed once, it is all that their ``resample(weights, statistics=)`` needs. ``each(statistics)`` [n] is the metric of
every row alone, where it says something of a row.

Beside ``compute``, a module gives ``resample(weights, **inputs)``: the metric in each of B resamples, where ``weights``
[B, n] holds how often a resample drew each row. It returns [B] values, nan where the metric is undefined. Counts are
then matrix products, and a bootstrap takes a fraction of a second.
A new metric is a file here, its name in ``MetricName`` (ftkit/evals/section.py), and a line in
tests/test_evals_metrics.py.
"""
