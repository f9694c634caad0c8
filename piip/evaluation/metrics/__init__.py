"""Metrics: COCO average precision (`coco`, `precision_tables`), mIoU (`semantic`), agreement of boxes (`matching`).

They take arrays and plain dicts and import no model.
"""
