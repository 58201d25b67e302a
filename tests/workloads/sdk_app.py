"""The service of flask_app.py with OpenTelemetry's own SDK, set up as its documentation says.

Its exporters and its sampler are as the SDK's own variables tell (OTEL_TRACES_EXPORTER, OTEL_METRICS_EXPORTER,
OTEL_TRACES_SAMPLER and so on); without one there is none. The calls in PLAIN_CALLS are made by what is not instrumented.
"""

import os
import urllib.request

from flask import request
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from calls import calls, request_id
from flask_app import app

spans = TracerProvider()
if os.environ.get("OTEL_TRACES_EXPORTER") == "otlp":
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(spans)
if os.environ.get("OTEL_METRICS_EXPORTER") == "otlp":
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
RequestsInstrumentor().instrument()
FlaskInstrumentor().instrument_app(app)


@app.before_request
def call_without_instrumentation():
    for hop, base in calls("PLAIN_CALLS"):
        urllib.request.urlopen(f"{base}/o/{request_id(request.path)}/{hop}", timeout=30).read()
