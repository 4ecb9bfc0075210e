//! Reads the body of a request within limits of size and time.

use std::pin::pin;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use tokio::sync::Semaphore;

use crate::error::{ApiError, Result};
use crate::limits::Limits;

/// Bodies up to this size may be read by all connections at a time.
const SMALL: usize = 64 << 10;
/// Number of larger bodies that are read at a time.
const LARGE_AT_ONCE: usize = 8;

static LARGE: Semaphore = Semaphore::const_new(LARGE_AT_ONCE);

/// The bytes of a body. 413 if it is too large, before any of it is read if its length is known; 408 if it takes too long.
pub(crate) async fn read(headers: &HeaderMap, body: Body, limits: Limits) -> Result<Vec<u8>> {
    let too_large = || {
        let message = format!("the body is larger than {} bytes; send less", limits.max_body);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limits.max_body as u64) {
        return Err(too_large());
    }
    let reading = async {
        let mut body = pin!(body);
        let (mut bytes, mut permit) = (Vec::new(), None);
        while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
            let frame = frame.map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "the body ended too early"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > limits.max_body {
                return Err(too_large());
            }
            if bytes.len() + data.len() > SMALL && permit.is_none() {
                permit = Some(LARGE.acquire().await.map_err(ApiError::internal)?);
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    let late = |_| {
        let seconds = limits.body_timeout.as_secs_f64();
        let message = format!("the body took longer than {seconds} s; send it faster");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
    };
    tokio::time::timeout(limits.body_timeout, reading).await.map_err(late)?
}
