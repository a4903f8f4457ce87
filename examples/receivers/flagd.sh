#!/bin/sh
# flagd with evalpipe's weights: it asks every 5 seconds, and gets the flags again only if they changed.
# SERVICE is your service; KEY is one of EVALPIPE_API_GATE_KEYS; API is where `evalpipe`'s API answers.
exec flagd start --sources "[{\"uri\":\"${API:-http://127.0.0.1:8300}/v1/flags/${SERVICE:?}?environment=${ENVIRONMENT:-production}\",
 \"provider\":\"http\",\"authHeader\":\"Bearer ${KEY:?}\"}]"
