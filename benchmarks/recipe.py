"""The collector of the tutorials: Flask, gunicorn and kafka-python, acks=all and a waited-for answer."""

from __future__ import annotations

import json
import os

from flask import Flask, request
from kafka import KafkaProducer

app = Flask(__name__)
producer = KafkaProducer(
    bootstrap_servers=os.environ["BROKER"],
    acks="all",
    value_serializer=lambda value: json.dumps(value).encode(),
    key_serializer=str.encode,
)


@app.post("/v1/track")
def track():
    event = request.get_json()
    producer.send("recipe", key=event["anonymousId"], value=event).get(timeout=10)
    return {"success": True}
