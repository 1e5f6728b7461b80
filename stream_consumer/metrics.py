"""The consumer's metrics: every name, its unit and its meaning, here and nowhere else."""

from __future__ import annotations

from enum import Enum

from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit, single_metric

from stream_consumer.consume import Outcome
from stream_consumer.generations import FIRST

NAMESPACE = "LiveInsight"
SERVICE = "stream_consumer"


class Metric(Enum):
    """(name in CloudWatch, unit). One value for each batch."""

    BATCH_SIZE = ("BatchSize", MetricUnit.Count)  # records of the batch
    EVENTS_RECEIVED = ("EventsReceived", MetricUnit.Count)  # = processed + duplicate + late + erased + quarantined
    EVENTS_PROCESSED = ("EventsProcessed", MetricUnit.Count)  # applied to a session, each for the first time
    EVENTS_DUPLICATE = ("EventsDuplicate", MetricUnit.Count)  # known to be in their session already
    EVENTS_LATE = ("EventsLate", MetricUnit.Count)  # beyond what the session's memory can judge
    EVENTS_ERASED = ("EventsErased", MetricUnit.Count)  # erasures, and what came to a session after its erasure
    EVENTS_QUARANTINED = ("EventsQuarantined", MetricUnit.Count)  # put aside, with their reason
    SESSIONS_UPSERTED = ("SessionsUpserted", MetricUnit.Count)
    ROLLUPS_UPSERTED = ("RollUpsUpserted", MetricUnit.Count)
    WRITE_CONFLICTS = ("WriteConflicts", MetricUnit.Count)  # compare-and-sets lost, the batch computed again
    BATCH_FAILURES = ("BatchFailures", MetricUnit.Count)  # batches given back, in part or whole
    PROCESSING_TIME = ("ProcessingTime", MetricUnit.Milliseconds)  # of the batch
    LAG = ("Lag", MetricUnit.Milliseconds)  # from the collector's received_at to written, of the oldest event

    @property
    def label(self) -> str:
        return self.value[0]

    @property
    def unit(self) -> MetricUnit:
        return self.value[1]


#: One more, for each reason of :class:`producer.event.Reason` and the frame's, in the dimension ``reason``.
QUARANTINED_BY_REASON = "EventsQuarantinedByReason"


def emit(outcome: Outcome, records: int, elapsed_ms: float, now_ms: int, generation: str = FIRST) -> None:
    """Print one batch's metrics in CloudWatch's embedded metric format: no call, no delay.

    Those of a further generation have the dimension ``generation``, so that a replay is not taken for traffic.
    """
    values = {
        Metric.BATCH_SIZE: records,
        Metric.EVENTS_RECEIVED: outcome.received,
        Metric.EVENTS_PROCESSED: outcome.applied,
        Metric.EVENTS_DUPLICATE: outcome.duplicate,
        Metric.EVENTS_LATE: outcome.late,
        Metric.EVENTS_ERASED: outcome.erased,
        Metric.EVENTS_QUARANTINED: outcome.quarantined.total(),
        Metric.SESSIONS_UPSERTED: outcome.sessions,
        Metric.ROLLUPS_UPSERTED: outcome.rollups,
        Metric.WRITE_CONFLICTS: outcome.conflicts,
        Metric.BATCH_FAILURES: int(outcome.failed_from is not None),
        Metric.PROCESSING_TIME: elapsed_ms,
    }
    if outcome.oldest_received is not None:
        values[Metric.LAG] = max(0, now_ms - outcome.oldest_received)
    metrics = EphemeralMetrics(namespace=NAMESPACE, service=SERVICE)
    if generation != FIRST:
        metrics.add_dimension(name="generation", value=generation)
    for metric, value in values.items():
        metrics.add_metric(name=metric.label, unit=metric.unit, value=value)
    metrics.flush_metrics()
    for reason, count in sorted(outcome.quarantined.items()):
        with single_metric(
            name=QUARANTINED_BY_REASON, unit=MetricUnit.Count, value=count, namespace=NAMESPACE
        ) as by_reason:
            by_reason.add_dimension(name="reason", value=reason)
            if generation != FIRST:
                by_reason.add_dimension(name="generation", value=generation)
