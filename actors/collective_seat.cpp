#include "actors/collective_seat.hpp"

#include "actors/error_bridge.hpp"

#include <utility>

namespace rollcast {

collective_seat_actor::behavior_type collective_seat(collective_seat_actor::pointer self,
                                                     std::shared_ptr<collective::runner> group) {
  self->set_exception_handler(end_process);
  return {
    [group = std::move(group)](worker_id meant, const collective::order& order) {
      group->obey(meant, order);
    },
  };
}

} // namespace rollcast
