// Drags a letter with mouse, pen or finger to an element of the class "zone".
let dragged = false;
/* Whether the click that comes now ends a drag. */
export const moved = () => dragged;
/* Begins at a pointerdown event; calls drop with the data attributes of the zone where it ends. */
export function grab(event, label, drop) {
  dragged = false;
  if (event.button !== 0) return;
  const from = [event.clientX, event.clientY];
  let flying = null, zone = null;
  // A finger would keep its events at the element where it began.
  event.currentTarget.releasePointerCapture?.(event.pointerId);
  const move = (e) => {
    if (e.pointerId !== event.pointerId) return;
    if (!flying && Math.hypot(e.clientX - from[0], e.clientY - from[1]) < 6) return;
    if (!flying) {
      flying = Object.assign(document.createElement("span"), { id: "flying", className: "chip", textContent: label });
      document.body.append(flying);
      document.body.classList.add("dragging");
      dragged = true;
    }
    flying.style.left = `${e.clientX - 20}px`;
    flying.style.top = `${e.clientY - 20}px`;
    const under = document.elementFromPoint(e.clientX, e.clientY)?.closest(".zone") ?? null;
    if (under !== zone) { zone?.classList.remove("over"); under?.classList.add("over"); zone = under; }
  };
  const end = (e) => {
    if (e.pointerId !== event.pointerId) return;
    for (const [name, handler] of [["pointermove", move], ["pointerup", end], ["pointercancel", end]]) removeEventListener(name, handler);
    document.body.classList.remove("dragging");
    flying?.remove();
    zone?.classList.remove("over");
    if (flying && zone && e.type === "pointerup") drop(zone.dataset);
    setTimeout(() => { dragged = false; });
  };
  for (const [name, handler] of [["pointermove", move], ["pointerup", end], ["pointercancel", end]]) addEventListener(name, handler);
}
