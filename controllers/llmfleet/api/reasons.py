"""The one vocabulary of reasons: the same word is in the condition, the event, the metric label and the log line.

In: nothing. Out: `Reason` (why an instance is in its state) and `DecisionReason` (why a fleet has its size).
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why an instance is in the state it is in: the Ready condition's reason."""

    SERVING = "Serving"
    STARTING = "Starting"
    WARMING_UP = "WarmingUp"
    DRAINING = "Draining"
    UPDATING = "Updating"
    WAITING_FOR_TURN = "WaitingForTurn"
    UPDATE_PAUSED = "UpdatePaused"
    UPDATE_HALTED = "UpdateHalted"
    CANARY_ANALYSIS = "CanaryAnalysis"
    CANARY_FAILED = "CanaryFailed"
    GROUP_RESTARTING = "GroupRestarting"
    STARTUP_TIMEOUT = "StartupTimeout"
    INVALID_SPEC = "InvalidSpec"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    MODEL_LOAD_FAILED = "ModelLoadFailed"
    CRASH_LOOP = "CrashLoop"


class DecisionReason(StrEnum):
    """Why a fleet has, or is given, its number of instances."""

    ON_TARGET = "OnTarget"
    FORECAST_ABOVE_CAPACITY = "ForecastAboveCapacity"
    QUEUE_ABOVE_CAPACITY = "QueueAboveCapacity"
    METRIC_ABOVE_THRESHOLD = "MetricAboveThreshold"
    ALL_METRICS_BELOW_THRESHOLD = "AllMetricsBelowThreshold"
    SUSTAINED_SURPLUS = "SustainedSurplus"
    SCHEDULE_FLOOR = "ScheduleFloor"
    AT_MINIMUM = "AtMinimum"
    AT_MAXIMUM = "AtMaximum"
    RATIO_RAISED_DECODE = "RatioRaisedDecode"
    RATIO_HELD_PREFILL = "RatioHeldPrefill"
    STABILIZING = "Stabilizing"
    COOLING_DOWN = "CoolingDown"
    PENDING_SUFFICES = "PendingSuffices"
    SIGNALS_STALE = "SignalsStale"
    LOWER_BOUND_ABOVE_CAPACITY = "LowerBoundAboveCapacity"
    WOKEN_BY_REQUEST = "WokenByRequest"
    IDLE_TO_ZERO = "IdleToZero"
    EXTERNAL_TARGET = "ExternalTarget"
    TEMPLATE_CHANGED = "TemplateChanged"
    STARTUP_TIMEOUT = "StartupTimeout"
    DRY_RUN = "DryRun"
    PAUSED = "Paused"
